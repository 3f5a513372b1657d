// The U-Net of imagelab/techniques/unet.py in plain JavaScript. The playground starts this file as a Web
// Worker, so that the page goes on while it computes: first it is told the network, then it answers one
// image after another.
//
// Images are planes of numbers, channel after channel, row after row: (C, H, W); weights are laid out as
// PyTorch has them. A convolution is one product of its weights with all pixels' neighbourhoods.

/** y[m, n] = bias[m] + Σ_k a[m, k]·b[n, k] for a (M, K) and b (N, K): (M, N). Four rows of a meet two of b
 * at a time, so that each number that is read is used several times; at the ends a row is computed twice. */
function products(a, b, bias, K) {
  const M = a.length / K, N = b.length / K;
  const y = new Float32Array(M * N);
  for (let m = 0; m < M; m += 4) {
    const m1 = Math.min(m + 1, M - 1), m2 = Math.min(m + 2, M - 1), m3 = Math.min(m + 3, M - 1);
    const p0 = m * K, p1 = m1 * K, p2 = m2 * K, p3 = m3 * K;
    for (let n = 0; n < N; n += 2) {
      const next = Math.min(n + 1, N - 1);
      const q = n * K, r = next * K;
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      for (let k = 0; k < K; k++) {
        const u = b[q + k], v = b[r + k];
        const w0 = a[p0 + k], w1 = a[p1 + k], w2 = a[p2 + k], w3 = a[p3 + k];
        a0 += w0 * u; a1 += w1 * u; a2 += w2 * u; a3 += w3 * u;
        b0 += w0 * v; b1 += w1 * v; b2 += w2 * v; b3 += w3 * v;
      }
      y[m * N + n] = a0 + bias[m]; y[m * N + next] = b0 + bias[m];
      y[m1 * N + n] = a1 + bias[m1]; y[m1 * N + next] = b1 + bias[m1];
      y[m2 * N + n] = a2 + bias[m2]; y[m2 * N + next] = b2 + bias[m2];
      y[m3 * N + n] = a3 + bias[m3]; y[m3 * N + next] = b3 + bias[m3];
    }
  }
  return y;
}

/** The 3×3 neighbourhoods of all pixels, zeros beyond the border: (C, H, W) to (H·W, C·9). */
function neighbourhoods(x, height, width) {
  const area = height * width, K = (9 * x.length) / area;
  const y = new Float32Array(area * K);
  for (let c = 0; c < x.length / area; c++)
    for (let dy = -1; dy <= 1; dy++)
      for (let dx = -1; dx <= 1; dx++) {
        const tap = 9 * c + 3 * (dy + 1) + dx + 1;
        for (let row = Math.max(-dy, 0); row < Math.min(height - dy, height); row++) {
          const from = c * area + (row + dy) * width + dx;
          for (let column = Math.max(-dx, 0); column < Math.min(width - dx, width); column++)
            y[(row * width + column) * K + tap] = x[from + column];
        }
      }
  return y;
}

/** (C, pixels) to (pixels, C), or back. */
function transposed(x, rows) {
  const columns = x.length / rows;
  const y = new Float32Array(x.length);
  for (let i = 0; i < rows; i++) for (let k = 0; k < columns; k++) y[k * rows + i] = x[i * columns + k];
  return y;
}

const silu = (x) => x.map((v) => v / (1 + Math.exp(-v)));
const added = (x, y) => x.map((v, i) => v + y[i]);

function joined(x, y) {
  const both = new Float32Array(x.length + y.length);
  both.set(x);
  both.set(y, x.length);
  return both;
}

/** Zero mean and unit variance over the channels of each pixel, then a scale and a shift for each. */
function pixelNorm(x, area, scale, shift) {
  const C = x.length / area;
  const y = new Float32Array(x.length);
  for (let i = 0; i < area; i++) {
    let mean = 0, variance = 0;
    for (let k = i; k < x.length; k += area) mean += x[k] / C;
    for (let k = i; k < x.length; k += area) variance += (x[k] - mean) ** 2 / C;
    const size = 1 / Math.sqrt(variance + 1e-5);
    for (let c = 0, k = i; c < C; c++, k += area) y[k] = (x[k] - mean) * size * scale[c] + shift[c];
  }
  return y;
}

/** The mean of every 2×2 pixels. */
function halved(x, height, width) {
  const y = new Float32Array(x.length / 4);
  for (let row = 0, at = 0; row < x.length / width; row += 2)
    for (let column = 0; column < width; column += 2, at++) {
      const i = row * width + column;
      y[at] = (x[i] + x[i + 1] + x[i + width] + x[i + width + 1]) / 4;
    }
  return y;
}

/** r×r pixels folded into channels, (1, H, W) to (r·r, H/r, W/r); `unfolded` is the way back. */
function folded(x, height, width, r) {
  const y = new Float32Array(x.length);
  const area = (height / r) * (width / r);
  for (let i = 0; i < x.length; i++) {
    const row = Math.floor(i / width), column = i % width;
    const pixel = Math.floor(row / r) * (width / r) + Math.floor(column / r);
    y[((row % r) * r + (column % r)) * area + pixel] = x[i];
  }
  return y;
}

function unfolded(x, height, width, r) {
  const places = folded(Float32Array.from({ length: x.length }, (_, i) => i), height * r, width * r, r);
  const y = new Float32Array(x.length);
  places.forEach((to, from) => (y[to] = x[from]));
  return y;
}

/** A U-Net by its tensors and `facts`: levels, blocks, patchSize, classes. Returns (x, t, label) => answer, for an
 * image (1, side, side), t from 0 to 1 and a class, or the number of classes for none. */
function unetOf(net, { levels, blocks, patchSize, side }) {
  const dense = (x, name) => products(net[`${name}.weight`], x, net[`${name}.bias`], x.length);
  const conv3 = (x, size, name) => {
    const patches = neighbourhoods(x, size, size);
    return products(net[`${name}.weight`], patches, net[`${name}.bias`], patches.length / (size * size));
  };
  const conv1 = (x, size, name) => {
    const pixels = transposed(x, x.length / (size * size));
    return products(net[`${name}.weight`], pixels, net[`${name}.bias`], pixels.length / (size * size));
  };
  const norm = (x, area, name) => pixelNorm(x, area, net[`${name}.norm.weight`], net[`${name}.norm.bias`]);

  /** t and the class as one vector. */
  function embed(t, label) {
    const half = net["time.0.weight"].length / net["time.0.bias"].length / 2;
    const angles = Float32Array.from({ length: half }, (_, i) =>
      t * Math.exp((Math.log(1000) * i) / (half - 1)) * (Math.PI / 2));
    const e = dense(silu(dense(joined(angles.map(Math.sin), angles.map(Math.cos)), "time.0")), "time.2");
    return silu(added(e, net["label.weight"].subarray(label * e.length, (label + 1) * e.length)));
  }
  /** x + two convolutions; the embedding e scales and shifts between them. */
  function block(x, size, e, name) {
    const area = size * size;
    let h = conv3(silu(norm(x, area, `${name}.norm1`)), size, `${name}.conv1`);
    const both = dense(e, `${name}.scale_shift`);
    const C = both.length / 2;
    const scale = both.subarray(0, C).map((v) => 1 + v), shift = both.subarray(C);
    h = norm(h, area, `${name}.norm2`).map((v, i) => v * scale[Math.floor(i / area)] + shift[Math.floor(i / area)]);
    h = conv3(silu(h), size, `${name}.conv2`);
    return added(h, `${name}.skip.weight` in net ? conv1(x, size, `${name}.skip`) : x);
  }
  /** Twice the size: each pixel becomes 2×2, (C, H, W) to (C', 2H, 2W). */
  function grown(x, size, name) {
    const area = size * size, C = x.length / area, bias = net[`${name}.bias`];
    const rows = transposed(net[`${name}.weight`], C); // (C', 2, 2) outputs, each of C inputs
    const parts = products(rows, transposed(x, C), new Float32Array(4 * bias.length), C);
    const y = new Float32Array(4 * bias.length * area);
    for (let c = 0; c < bias.length; c++) {
      const plane = unfolded(parts.subarray(4 * c * area, 4 * (c + 1) * area), size, size, 2);
      y.set(plane.map((v) => v + bias[c]), 4 * c * area);
    }
    return y;
  }

  return (x, t, label) => {
    const e = embed(t, label);
    let size = side / patchSize;
    let h = conv3(folded(x, side, side, patchSize), size, "first");
    const skips = [h];
    for (let level = 0; level < levels; level++) {
      if (level) [h, size] = [halved(h, size, size), size / 2];
      for (let k = 0; k < blocks; k++) skips.push((h = block(h, size, e, `down.${level}.${k}.block`)));
    }
    for (const k of [0, 1]) h = block(h, size, e, `middle.${k}.block`);
    for (let up = 0; up < levels; up++) { // from the innermost level outwards
      if (up) [h, size] = [grown(h, size, `grow.${up - 1}`), 2 * size];
      const count = up === levels - 1 ? blocks + 1 : blocks;
      for (let k = 0; k < count; k++) h = block(joined(h, skips.pop()), size, e, `up.${up}.${k}.block`);
    }
    return unfolded(conv3(silu(norm(h, size * size, "norm")), size, "last"), size, size, patchSize);
  };
}

let answer = null;
addEventListener("message", ({ data }) => {
  if (data.net) answer = unetOf(data.net, data.facts);
  else postMessage(data.labels.map((label) => answer(data.x, data.t, label)));
});
