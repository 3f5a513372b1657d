// The playground of report.html: small networks of the very run, computed in plain JavaScript.
//
// From top to bottom: numbers out of the page, layers, networks, attacks, random numbers, diffusion,
// pictures; then the controls that all panels use, the panels, and the start. Images are Float32Arrays
// of 784 numbers, row after row; weights are laid out as PyTorch has them. The mathematics is pure:
// randomness is passed in. What Python puts into the page is in playground.py.

const SIDE = 28;
const PIXELS = SIDE * SIDE;
const MIDDLE = 14.5; // where the centre of mass of MNIST's digits lies: in the middle of pixel 14

// --- numbers out of the page -----------------------------------------------------------------------

/** The bytes of a base64 text. */
function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The number that 16 bits of IEEE 754 stand for: sign, 5 bits of exponent, 10 of fraction. */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The float16 numbers that playground.py packed: all low bytes, then all high bytes, deflated. */
async function unpack(text) {
  const bytes = await inflate(bytesOf(text));
  const count = bytes.length / 2;
  const table = Float32Array.from({ length: 65536 }, (_, bits) => half(bits));
  const numbers = new Float32Array(count);
  for (let i = 0; i < count; i++) numbers[i] = table[bytes[i] | (bytes[count + i] << 8)];
  return numbers;
}

/** A network as an object of its tensors by name, from its packed text and its shapes. */
async function networkOf(text, tensors) {
  const numbers = await unpack(text);
  const network = {};
  let from = 0;
  for (const [name, shape] of tensors) {
    const size = shape.reduce((product, length) => product * length, 1);
    network[name] = numbers.subarray(from, from + size);
    from += size;
  }
  return network;
}

// --- layers ----------------------------------------------------------------------------------------

/** y = W·x + b, W (outputs, inputs). */
function dense(x, weight, bias) {
  const inputs = x.length;
  const y = new Float32Array(bias.length);
  for (let o = 0, k = 0; o < y.length; o++) {
    let sum = bias[o];
    for (let i = 0; i < inputs; i++, k++) sum += weight[k] * x[i];
    y[o] = sum;
  }
  return y;
}

/** The gradient Wᵀ·dy that a dense layer passes back to its inputs. */
function denseBack(dy, weight, inputs) {
  const dx = new Float32Array(inputs);
  for (let o = 0, k = 0; o < dy.length; o++, k += inputs) {
    const slope = dy[o];
    if (slope !== 0) for (let i = 0; i < inputs; i++) dx[i] += slope * weight[k + i];
  }
  return dx;
}

/** `planes` images, one after the other, each with a border of one zero. */
function padded(x, planes, height, width) {
  const wide = width + 2;
  const y = new Float32Array(planes * (height + 2) * wide);
  for (let p = 0; p < planes; p++)
    for (let row = 0; row < height; row++) {
      const from = (p * height + row) * width;
      y.set(x.subarray(from, from + width), (p * (height + 2) + row + 1) * wide + 1);
    }
  return y;
}

/** A 3×3 convolution with a border of one zero; x (inputs, H, W), weight (outputs, inputs, 3, 3). */
function conv3(x, height, width, weight, bias) {
  const inputs = x.length / (height * width);
  const outputs = bias.length;
  const area = height * width;
  const wide = width + 2;
  const from = padded(x, inputs, height, width);
  const y = new Float32Array(outputs * area);
  for (let o = 0; o < outputs; o++) {
    const plane = y.subarray(o * area, (o + 1) * area).fill(bias[o]);
    for (let i = 0; i < inputs; i++) {
      const [a, b, c, d, e, f, g, h, k] = weight.subarray((o * inputs + i) * 9, (o * inputs + i + 1) * 9);
      let at = 0;
      for (let row = 0; row < height; row++) {
        let p = (i * (height + 2) + row) * wide;
        let q = p + wide;
        let r = q + wide;
        for (let column = 0; column < width; column++, p++, q++, r++)
          plane[at++] +=
            a * from[p] + b * from[p + 1] + c * from[p + 2] +
            d * from[q] + e * from[q + 1] + f * from[q + 2] +
            g * from[r] + h * from[r + 1] + k * from[r + 2];
      }
    }
  }
  return y;
}

/** The weights with which `conv3` passes gradients back: inputs and outputs swapped, turned around. */
function turned(weight, outputs, inputs) {
  const back = new Float32Array(weight.length);
  for (let o = 0; o < outputs; o++)
    for (let i = 0; i < inputs; i++)
      for (let k = 0; k < 9; k++) back[(i * outputs + o) * 9 + k] = weight[(o * inputs + i) * 9 + 8 - k];
  return back;
}

function conv3Back(dy, height, width, weight, inputs) {
  const outputs = dy.length / (height * width);
  return conv3(dy, height, width, turned(weight, outputs, inputs), new Float32Array(inputs));
}

/** The largest of every 2×2 pixels, and where each stood. */
function maxPool2(x, height, width) {
  const planes = x.length / (height * width);
  const y = new Float32Array(x.length / 4);
  const from = new Int32Array(y.length);
  let at = 0;
  for (let p = 0; p < planes; p++)
    for (let row = 0; row < height; row += 2)
      for (let column = 0; column < width; column += 2, at++) {
        const first = (p * height + row) * width + column;
        let best = first;
        for (const i of [first + 1, first + width, first + width + 1]) if (x[i] > x[best]) best = i;
        y[at] = x[best];
        from[at] = best;
      }
  return { y, from };
}

function maxPool2Back(dy, from, size) {
  const dx = new Float32Array(size);
  for (let i = 0; i < dy.length; i++) dx[from[i]] += dy[i];
  return dx;
}

const relu = (x) => x.map((v) => Math.max(v, 0));
const reluBack = (dy, y) => dy.map((v, i) => (y[i] > 0 ? v : 0));
const silu = (x) => x.map((v) => v / (1 + Math.exp(-v)));
const tanh = (x) => x.map(Math.tanh);
const sigmoid = (x) => x.map((v) => 1 / (1 + Math.exp(-v)));

function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (v) => Math.exp(v - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((v) => v / sum);
}

const argmax = (values) => values.indexOf(Math.max(...values));

// --- networks --------------------------------------------------------------------------------------

/** What the classifier (DigitCNN) says about an image in [0, 1]: its logits, and a function from the
 * gradient of the logits to that of the pixels. */
function classify(net, image) {
  const whole = SIDE, middle = SIDE / 2, small = SIDE / 4;
  const seen = image.map((v) => (v - 0.13) / 0.31);
  const first = conv3(seen, whole, whole, net["conv1.weight"], net["conv1.bias"]); //     (32, 28, 28)
  const pooled = maxPool2(first, whole, whole);
  const a = relu(pooled.y); //                                                            (32, 14, 14)
  const second = conv3(a, middle, middle, net["conv2.weight"], net["conv2.bias"]); //     (64, 14, 14)
  const again = maxPool2(second, middle, middle);
  const b = relu(again.y); //                                                             (64, 7, 7)
  const features = relu(dense(b, net["dense1.weight"], net["dense1.bias"])); //           (128,)
  const logits = dense(features, net["dense2.weight"], net["dense2.bias"]);

  function back(dLogits) {
    let d = reluBack(denseBack(dLogits, net["dense2.weight"], features.length), features);
    d = reluBack(denseBack(d, net["dense1.weight"], b.length), b);
    d = maxPool2Back(d, again.from, 64 * middle * middle);
    d = reluBack(conv3Back(d, middle, middle, net["conv2.weight"], 32), a);
    d = maxPool2Back(d, pooled.from, 32 * whole * whole);
    return conv3Back(d, whole, whole, net["conv1.weight"], 1).map((v) => v / 0.31);
  }
  return { logits, back };
}

/** The class that is read and the probabilities of all. */
function reading(net, image) {
  const shares = softmax(classify(net, image).logits);
  return { shares, best: argmax(shares) };
}

/** ∇ₓ of the cross-entropy of `label`. */
function inputGradient(net, image, label) {
  const { logits, back } = classify(net, image);
  const slopes = Float32Array.from(softmax(logits));
  slopes[label] = 0;
  slopes[label] = -slopes.reduce((a, b) => a + b, 0); // p − 1, also where p rounds to 1
  return back(slopes);
}

/** The GAN's generator: a latent to an image in [0, 1]. */
function generate(net, latent) {
  let x = relu(dense(latent, net["layers.0.weight"], net["layers.0.bias"]));
  x = relu(dense(x, net["layers.2.weight"], net["layers.2.bias"]));
  return tanh(dense(x, net["layers.4.weight"], net["layers.4.bias"])).map((v) => (v + 1) / 2);
}

/** The VAE's decoder: two numbers to an image in [0, 1]. */
function decode(net, z) {
  const hidden = relu(dense(z, net["decoder.0.weight"], net["decoder.0.bias"]));
  return sigmoid(dense(hidden, net["decoder.2.weight"], net["decoder.2.bias"]));
}

/** What the diffusion MLP answers to x_t at t: x̂₀ or ε̂, as its recipe has it. It is shown x_t + √ᾱ_t,
 * in which a black background is 0. */
function answer(net, x, t, lift) {
  const seen = new Float32Array(net["mlp.0.weight"].length / net["mlp.0.bias"].length);
  const width = seen.length - x.length;
  seen.set(x.map((v) => v + lift));
  seen.set(net.embedding.subarray(t * width, (t + 1) * width), x.length);
  let h = silu(dense(seen, net["mlp.0.weight"], net["mlp.0.bias"]));
  h = silu(dense(h, net["mlp.2.weight"], net["mlp.2.bias"]));
  return dense(h, net["mlp.4.weight"], net["mlp.4.bias"]);
}

// --- attacks ---------------------------------------------------------------------------------------

const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

/** x + ε·direction, within [0, 1]; `direction` holds −1, 0 and 1. */
const moved = (image, direction, epsilon) => image.map((v, i) => clamp(v + epsilon * direction[i], 0, 1));

/** The signs along which the loss of `label` grows; those along which it falls, to reach a class. */
function attackSigns(net, image, label, towards) {
  const way = towards ? -1 : 1;
  return inputGradient(net, image, label).map((v) => way * Math.sign(v));
}

/** PGD (Madry et al. 2017) from `start`, a step at a time: yields each image on the way. */
function* pgd(net, image, start, label, epsilon, steps, towards) {
  const size = (2.5 * epsilon) / steps;
  let x = start;
  for (let step = 0; step < steps; step++) {
    const signs = attackSigns(net, x, label, towards);
    x = moved(x, signs, size).map((v, i) => clamp(v, image[i] - epsilon, image[i] + epsilon));
    yield x;
  }
}

// --- random numbers --------------------------------------------------------------------------------

/** mulberry32: numbers in [0, 1) from a seed, the same in every browser. */
function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** A function that gives `count` standard normal numbers (Box and Muller 1958). */
function normal(seed) {
  const random = uniform(seed);
  return (count) =>
    Float32Array.from({ length: count }, () =>
      Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random()));
}

/** Between two normal latents along the sphere on which they lie (a straight line would cut it). */
function between(a, b, share) {
  const dot = (p, q) => p.reduce((sum, v, i) => sum + v * q[i], 0);
  const angle = Math.acos(clamp(dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)), -1, 1));
  if (angle < 1e-4) return a.map((v, i) => (1 - share) * v + share * b[i]);
  const [p, q] = [(1 - share) * angle, share * angle].map((part) => Math.sin(part) / Math.sin(angle));
  return a.map((v, i) => p * v + q * b[i]);
}

// --- diffusion -------------------------------------------------------------------------------------

/** x̂₀ from what a network says about x_t: x₀ itself, the noise ε, or v = √ᾱ·ε − √(1 − ᾱ)·x₀. */
function toX0(predicts, out, x, alphaBar) {
  const a = Math.sqrt(alphaBar), b = Math.sqrt(1 - alphaBar);
  if (predicts === "x0") return out;
  return x.map(predicts === "v" ? (v, i) => a * v - b * out[i] : (v, i) => (v - b * out[i]) / a);
}

/** x̂₀ from what the MLP says about x_t; `recipe`: alphaBar, predicts, and its bound on x̂₀. */
function cleanEstimate(net, recipe, x, t) {
  const out = answer(net, x, t, Math.sqrt(recipe.alphaBar[t]));
  const x0 = toX0(recipe.predicts, out, x, recipe.alphaBar[t]);
  if (recipe.bound === "tanh") return tanh(x0);
  return recipe.bound === "clip" ? x0.map((v) => clamp(v, -1, 1)) : x0;
}

/** From x_t to x_{t−1}: a draw of q(x_{t−1} | x_t, x̂₀) (Ho et al. 2020, eq. 6 and 7), with variance
 * β̃; none at t = 0. */
function reverseStep(alphaBar, x, x0, t, noise) {
  const now = alphaBar[t];
  const then = t > 0 ? alphaBar[t - 1] : 1;
  const alpha = now / then;
  const fromX0 = (Math.sqrt(then) * (1 - alpha)) / (1 - now);
  const fromX = (Math.sqrt(alpha) * (1 - then)) / (1 - now);
  const sigma = Math.sqrt(((1 - alpha) * (1 - then)) / (1 - now));
  return x.map((v, i) => fromX0 * x0[i] + fromX * v + (t > 0 ? sigma * noise[i] : 0));
}

/** x̂₀ of x_t at a step {t, alphaBar} for a class, by a U-Net that answers for several classes at once, under
 * classifier-free guidance (Ho and Salimans 2022): without a class + scale·(with it − without it). */
async function guidedEstimate(unet, predicts, x, { t, alphaBar }, { label, none, scale }) {
  const labels = scale === 0 ? [none] : scale === 1 ? [label] : [label, none];
  const [first, second] = await unet(x, t, labels);
  const out = second ? first.map((v, i) => second[i] + scale * (v - second[i])) : first;
  return toX0(predicts, out, x, alphaBar).map((v) => clamp(v, -1, 1));
}

/** DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) over `steps`, {t, alphaBar} each, from noise x: yields what
 * the network saw and expected at each, {x, x0, t}. The last x̂₀ is the sample. */
async function* solved(estimate, steps, x) {
  const halfLogSnr = (alphaBar) => 0.5 * Math.log(alphaBar / (1 - alphaBar));
  let before = null, stepBefore = 0;
  for (const [k, step] of steps.entries()) {
    const x0 = await estimate(x, step);
    yield { x, x0, t: step.t };
    if (k === steps.length - 1) return;
    const now = step.alphaBar, then = steps[k + 1].alphaBar;
    const h = halfLogSnr(then) - halfLogSnr(now);
    const slope = before ? h / (2 * stepBefore) : 0; // the second order: x̂₀ goes on as it went
    const keep = Math.sqrt((1 - then) / (1 - now)), add = -Math.sqrt(then) * Math.expm1(-h);
    const last = before ?? x0;
    x = x.map((v, i) => keep * v + add * ((1 + slope) * x0[i] - slope * last[i]));
    [before, stepBefore] = [x0, h];
  }
}

/** How many of `steps` are still to go along RePaint: `jump` of them up again `repeats` − 1 times wherever a
 * multiple of `jump` is reached. */
function repaintLevels(steps, jump, repeats) {
  const levels = [steps], left = new Map();
  for (let k = jump; k <= steps - jump; k += jump) left.set(k, repeats - 1);
  for (let level = steps; level > 0; ) {
    levels.push(--level);
    if (!left.get(level)) continue;
    left.set(level, left.get(level) - 1);
    for (let k = 0; k < jump; k++) levels.push(++level);
  }
  return levels;
}

/** RePaint (Lugmayr et al. 2022): the image `known` with its `hole` (1 where it is drawn anew) filled along
 * `levels`. Around the hole each state is the known image with as much noise as belongs there. Yields {x, x0}
 * after each call of the network; the last x is the picture. `draw` gives normal numbers. */
async function* repainted(estimate, steps, levels, known, hole, draw) {
  const at = (level) => steps[steps.length - level]; // with so many steps to go
  const alphaBar = (level) => (level ? at(level).alphaBar : 1);
  let x = draw(known.length);
  for (let k = 1; k < levels.length; k++) {
    const [now, then] = [alphaBar(levels[k - 1]), alphaBar(levels[k])];
    if (then < now) {
      const noise = draw(known.length);
      x = x.map((v, i) => Math.sqrt(then / now) * v + Math.sqrt(1 - then / now) * noise[i]);
      continue;
    }
    const x0 = await estimate(x, at(levels[k - 1]));
    const noise = () => (then < 1 ? draw(known.length) : x0); // at the end it is not used
    const inside = reverseStep([then, now], x, x0, 1, noise());
    const around = noise();
    x = inside.map((v, i) => (hole[i] ? v : Math.sqrt(then) * known[i] + Math.sqrt(1 - then) * around[i]));
    yield { x, x0 };
  }
}

/** A U-Net (unet.js) in a Web Worker: a function from x_t, t and classes to a promise of its answers. */
function inWorker(source, net, facts) {
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const waiting = []; // it answers in the order in which it was asked
  worker.addEventListener("message", ({ data }) => waiting.shift()(data));
  worker.postMessage({ net, facts });
  return (x, t, labels) => new Promise((done) => {
    waiting.push(done);
    worker.postMessage({ x, t, labels });
  });
}

// --- pictures --------------------------------------------------------------------------------------

/** An image with sides `w` and `h` at `W` and `H`, each pixel a mean of those that it covers. */
function resized(x, w, h, W, H) {
  const taps = (from, to) =>
    Array.from({ length: to }, (_, o) => {
      const scale = from / to, reach = Math.max(scale, 1), centre = (o + 0.5) * scale;
      const found = [];
      for (let i = Math.max(Math.floor(centre - reach), 0); i < Math.min(centre + reach, from); i++) {
        const weight = 1 - Math.abs(i + 0.5 - centre) / reach;
        if (weight > 0) found.push([i, weight]);
      }
      const sum = found.reduce((total, [, weight]) => total + weight, 0);
      return found.map(([i, weight]) => [i, weight / sum]);
    });
  const across = taps(w, W), down = taps(h, H);
  const rows = new Float32Array(h * W);
  for (let y = 0; y < h; y++)
    for (let o = 0; o < W; o++) for (const [i, weight] of across[o]) rows[y * W + o] += weight * x[y * w + i];
  const out = new Float32Array(H * W);
  for (let o = 0; o < H; o++)
    for (const [i, weight] of down[o]) for (let c = 0; c < W; c++) out[o * W + c] += weight * rows[i * W + c];
  return out;
}

/** Light ink on dark, at any size, as MNIST has its digits: the box of the ink scaled to `inner` pixels,
 * its centre of mass in the middle of the frame. Null where there is no ink. */
function framed(ink, width, height, inner = 20) {
  const least = ink.reduce((a, b) => Math.max(a, b), 0) / 10;
  let left = width, right = -1, top = height, bottom = -1;
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++)
      if (ink[i] > least) {
        left = Math.min(left, x); right = Math.max(right, x);
        top = Math.min(top, y); bottom = Math.max(bottom, y);
      }
  if (right < 0) return null;
  const w = right - left + 1, h = bottom - top + 1;
  const box = new Float32Array(w * h);
  for (let y = 0; y < h; y++) box.set(ink.subarray((top + y) * width + left, (top + y) * width + right + 1), y * w);
  const scale = inner / Math.max(w, h);
  const W = Math.max(Math.round(w * scale), 1), H = Math.max(Math.round(h * scale), 1);
  const small = resized(box, w, h, W, H);
  let mass = 0, massX = 0, massY = 0;
  small.forEach((v, i) => {
    mass += v; massX += v * ((i % W) + 0.5); massY += v * (Math.floor(i / W) + 0.5);
  });
  const shiftX = clamp(Math.round(MIDDLE - massX / mass), 0, SIDE - W);
  const shiftY = clamp(Math.round(MIDDLE - massY / mass), 0, SIDE - H);
  const frame = new Float32Array(PIXELS);
  for (let y = 0; y < H; y++)
    for (let x = 0; x < W; x++) frame[(shiftY + y) * SIDE + shiftX + x] = clamp(small[y * W + x], 0, 1);
  return frame;
}

/** A grey picture, dark on light or light on dark, as light ink on dark: what differs from its border. */
function inkOf(grey, width, height) {
  const border = [];
  grey.forEach((v, i) => {
    const x = i % width, y = Math.floor(i / width);
    if (x === 0 || y === 0 || x === width - 1 || y === height - 1) border.push(v);
  });
  const paper = border.sort((a, b) => a - b)[border.length >> 1];
  const ends = grey.reduce(([low, high], v) => [Math.min(low, v - paper), Math.max(high, v - paper)], [0, 0]);
  const [sign, most] = ends[1] >= -ends[0] ? [1, ends[1]] : [-1, -ends[0]];
  return grey.map((v) => clamp(((sign * (v - paper)) / Math.max(most, 1e-6) - 0.2) / 0.6, 0, 1)); // paper is not even
}

/** A Gaussian blur of standard deviation `sigma` pixels, the border mirrored. */
function blurred(picture, width, height, sigma) {
  if (sigma < 0.05) return picture;
  const reach = Math.ceil(3 * sigma);
  const taps = Array.from({ length: 2 * reach + 1 }, (_, k) => Math.exp(-((k - reach) ** 2) / (2 * sigma * sigma)));
  const sum = taps.reduce((a, b) => a + b, 0);
  const mirror = (i, length) => (i < 0 ? -i : i >= length ? 2 * (length - 1) - i : i);
  const along = (from, length, step, lines, stride) => {
    const to = new Float32Array(from.length);
    for (let line = 0; line < lines; line++)
      for (let i = 0; i < length; i++) {
        let total = 0;
        for (let k = -reach; k <= reach; k++)
          total += taps[k + reach] * from[line * stride + mirror(i + k, length) * step];
        to[line * stride + i * step] = total / sum;
      }
    return to;
  };
  return along(along(picture, width, 1, height, width), height, width, width, 1);
}

/** Decibels between two pictures in [0, 1]. */
function psnr(a, b) {
  const mse = a.reduce((sum, v, i) => sum + (v - b[i]) ** 2, 0) / a.length;
  return -10 * Math.log10(mse);
}

/** Whether a picture is noise: its pixels know nothing of their neighbours. Their correlation is about 0 in
 * noise and 0.5 or more in a digit. */
function isNoise(image) {
  const mean = image.reduce((sum, v) => sum + v, 0) / image.length;
  let together = 0, alone = 0;
  image.forEach((v, i) => {
    alone += (v - mean) ** 2;
    if (i % SIDE < SIDE - 1) together += 0.5 * (v - mean) * (image[i + 1] - mean);
    if (i + SIDE < image.length) together += 0.5 * (v - mean) * (image[i + SIDE] - mean);
  });
  return together < 0.3 * alone;
}

const grey = (v) => Array(3).fill(255 * clamp(v, 0, 1));

/** Paint an image of `width` pixels a row into a canvas, each number by `colour`. */
function paint(canvas, image, width = SIDE, colour = grey) {
  const height = image.length / width;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  image.forEach((v, i) => pixels.data.set([...colour(v), 255], 4 * i));
  context.putImageData(pixels, 0, 0);
}

/** The grey values in [0, 1] of a canvas. */
function greysOf(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return Float32Array.from({ length: data.length / 4 }, (_, i) =>
    (0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]) / 255);
}

// --- controls --------------------------------------------------------------------------------------

const frame = () => new Promise((done) => requestAnimationFrame(done));
const percent = (share) => `${(100 * share).toFixed(0)} %`;

/** An element with attributes (functions become listeners) and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

let made = 0; // so that every control has an id of its own

function button(text, act, attributes = {}) {
  return make("button", { type: "button", click: act, ...attributes }, text);
}

/** A labelled slider; `shown` turns its number into words. */
function slider({ label, min, max, step, value, shown = String, act }) {
  const id = `play-${++made}`;
  const output = make("output", { for: id });
  const input = make("input", { type: "range", id, min, max, step, value, input: () => tell(true) });
  const tell = (heard) => {
    output.textContent = shown(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
    if (heard) act(Number(input.value));
  };
  tell(false);
  const set = (number) => {
    input.value = number;
    tell(false);
  };
  return { row: make("div", { class: "slider" }, make("label", { for: id }, label), output, input), input, set };
}

/** A choice of one among few, as radio buttons. */
function choice({ label, options, value, act }) {
  const name = `play-${++made}`;
  const items = options.map(([key, text]) =>
    make("label", {}, make("input", {
      type: "radio", name, value: key, checked: key === value, change: () => act(key),
    }), make("span", {}, text)));
  return make("fieldset", { class: "choice" }, make("legend", {}, label), make("div", {}, ...items));
}

/** A canvas of big pixels and its caption, which says it to those who cannot see it; none inside buttons,
 * which say it themselves. */
function picture(caption = "") {
  const spoken = caption ? { role: "img", "aria-label": caption } : { "aria-hidden": "true" };
  const canvas = make("canvas", { class: "pixels", width: SIDE, height: SIDE, ...spoken });
  const words = make("figcaption", {}, caption);
  return { figure: make("figure", { class: "tile" }, canvas, words), canvas, words };
}

/** Ten bars, two for each class: before, and after a change. */
function bars(classes, two = true) {
  const rows = classes.map((name) => {
    const [before, after] = [make("i", { class: "before" }), make("i", { class: "after" })];
    const words = make("span", { class: "share" });
    return { before, after, words, row: make("div", { class: two ? "bar" : "bar one" },
      make("b", {}, name), make("span", { class: "track" }, before, ...(two ? [after] : [])), words) };
  });
  const box = make("div", { class: "bars", role: "img" }, ...rows.map(({ row }) => row));
  const key = make("p", { class: "hint key" }, make("i", { class: "before" }), "before the change",
    make("i", { class: "after" }), "after it");
  if (two) box.append(key);
  function show(shares, changed) {
    rows.forEach(({ before, after, words, row }, k) => {
      before.style.width = `${100 * shares[k]}%`;
      after.style.width = changed ? `${100 * changed[k]}%` : "0";
      const [was, is] = [shares, changed ?? shares].map((values) => (100 * values[k]).toFixed(0));
      words.textContent = was === is ? `${is} %` : `${was} → ${is} %`;
      row.classList.toggle("top", k === argmax(changed ?? shares));
    });
    const list = (values) => classes.map((name, k) => [name, values[k]]).filter(([, v]) => v >= 0.01)
      .sort((a, b) => b[1] - a[1]).map(([name, v]) => `${name}: ${percent(v)}`).join(", ");
    box.setAttribute("aria-label",
      `Probabilities: ${list(shares)}${changed ? `; after the change: ${list(changed)}` : ""}`);
  }
  function clear() {
    for (const { before, after, words, row } of rows) {
      before.style.width = after.style.width = "0";
      words.textContent = "";
      row.classList.remove("top");
    }
    box.setAttribute("aria-label", "No probabilities yet");
  }
  return { box, show, clear };
}

/** Notes that one more thing (or one less) is being computed for a panel. */
function count(stage, change) {
  const now = Number(stage.dataset.computing ?? 0) + change;
  stage.dataset.computing = now;
  stage.setAttribute("aria-busy", now > 0);
}

/** Runs `work` once per frame at most, and once more if it was asked for meanwhile. */
function coalesced(stage, work) {
  let wanted = false, busy = false;
  return async () => {
    wanted = true;
    if (busy) return;
    busy = true;
    count(stage, 1);
    while (wanted) {
      wanted = false;
      await frame();
      await work();
    }
    busy = false;
    count(stage, -1);
  };
}

const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

// --- the panels: each takes its data, what all share, and the element to stand in ------------------

async function attackPanel({ readers, digits, noun }, { classes, network }, stage) {
  const STEPS = 10, BOARD = 280, MOST = 0.5;
  const NAMES = { noise: "Noise", fgsm: "FGSM", pgd: "PGD" };
  const held = bytesOf(digits.images);
  const heldOut = (k) => Float32Array.from(held.subarray(k * PIXELS, (k + 1) * PIXELS), (v) => v / 255);
  const state = { image: null, truth: null, kind: "fgsm", epsilon: 0, aim: "away" }; // image: null while none is drawn

  // The board: drawn on with mouse, pen or finger, or showing what was chosen.
  const board = make("canvas", { width: BOARD, height: BOARD, class: "board", role: "img" });
  const pen = board.getContext("2d", { willReadFrequently: true });
  const hint = make("p", { class: "hint", "aria-live": "polite" });
  let drawn = false;
  let last = null;
  const place = (event) => {
    const box = board.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top].map((v) => (v / box.width) * BOARD);
  };
  function wipe() {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, BOARD, BOARD);
    drawn = true;
  }
  function stroke(to) {
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 21, lineCap: "round", lineJoin: "round" });
    pen.beginPath();
    pen.moveTo(...(last ?? to));
    pen.lineTo(...to);
    pen.stroke();
    last = to;
  }
  function tellBoard(text) {
    say(hint, text);
    board.setAttribute("aria-label", text);
  }
  function readBoard() {
    const image = framed(greysOf(board), BOARD, BOARD, noun === "digit" ? 20 : SIDE);
    tellBoard(!image ? `An empty board: draw a ${noun} on it.`
      : `Your own ${noun}. The network sees it with its centre of mass in the middle, as MNIST has its digits.`);
    unchoose();
    see(image);
  }
  /** Takes another image, or none, with its class where that is known. */
  function see(image, truth = null) {
    Object.assign(state, { image, truth });
    renew();
  }
  /** What was found is of what was chosen before. */
  function renew() {
    say(found, "");
    aim.disabled = state.kind === "noise"; // it has none
    search.disabled = !state.image;
    refresh();
  }
  board.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    board.setPointerCapture(event.pointerId);
    if (!drawn) wipe();
    last = null;
    stroke(place(event));
    readBoard();
  });
  board.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const point of event.getCoalescedEvents?.() ?? [event]) stroke(place(point));
    readBoard();
  });
  for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, () => (last = null));

  function onBoard(image, width) {
    const small = make("canvas");
    paint(small, image, width);
    pen.imageSmoothingEnabled = width > BOARD;
    wipe();
    const scale = BOARD / Math.max(small.width, small.height);
    const [w, h] = [small.width * scale, small.height * scale];
    pen.drawImage(small, (BOARD - w) / 2, (BOARD - h) / 2, w, h);
    drawn = false;
  }

  // Held-out images: one stop of the Tab key, and the arrow keys among them.
  const thumbs = digits.labels.map((label, k) => {
    const thumb = make("canvas", { class: "pixels" });
    paint(thumb, heldOut(k));
    return make("button", {
      type: "button", role: "radio", "aria-checked": "false", tabindex: "-1",
      "aria-label": `held-out ${classes[label]}, number ${(k % 3) + 1}`, click: () => choose(k),
    }, thumb);
  });
  const shelf = make("div", {
    class: "shelf", role: "radiogroup", "aria-label": `Held-out ${noun}s`, keydown: (event) => {
      const now = thumbs.indexOf(document.activeElement);
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const to = { Home: 0, End: thumbs.length - 1 }[event.key] ?? (step && now + step);
      if (to === undefined) return;
      event.preventDefault();
      const k = (to + thumbs.length) % thumbs.length;
      thumbs[k].focus();
      choose(k);
    },
  }, ...thumbs);
  function mark(chosen) {
    thumbs.forEach((thumb, k) => {
      thumb.setAttribute("aria-checked", k === chosen);
      thumb.tabIndex = k === (chosen ?? 0) ? 0 : -1;
    });
  }
  const unchoose = () => mark(null);
  function choose(k) {
    onBoard(heldOut(k), SIDE);
    mark(k);
    tellBoard(`A held-out ${classes[digits.labels[k]]}. Draw over it to begin one of your own.`);
    see(heldOut(k), digits.labels[k]);
  }

  // A picture of one's own; it stays on this computer.
  async function own(file) {
    try {
      const bitmap = await createImageBitmap(file);
      const scale = Math.min(BOARD / Math.max(bitmap.width, bitmap.height), 1);
      const canvas = make("canvas", {
        width: Math.max(Math.round(bitmap.width * scale), 1), height: Math.max(Math.round(bitmap.height * scale), 1),
      });
      const context = canvas.getContext("2d");
      context.fillStyle = "#fff";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      const ink = inkOf(greysOf(canvas), canvas.width, canvas.height);
      const image = framed(ink, canvas.width, canvas.height, noun === "digit" ? 20 : SIDE);
      if (!image) return tellBoard("Nothing stands out from the border of that picture.");
      onBoard(ink, canvas.width);
      unchoose();
      tellBoard(`${file.name}, cut out and centred. It stays on this computer.`);
      see(image);
    } catch {
      tellBoard(`${file.name} is no picture that this browser can read.`);
    }
  }
  const file = make("input", {
    type: "file", accept: "image/*", class: "unseen", tabindex: "-1", "aria-label": "Your picture file",
    change: () => file.files.length && own(file.files[0]),
  });
  const tools = make("div", { class: "tools" },
    button("Clear", () => { wipe(); readBoard(); }), button("Your picture…", () => file.click()), file);

  // What is done to it.
  const kinds = choice({
    label: "What is added", options: [["noise", "noise"], ["fgsm", "FGSM, 1 step"], ["pgd", `PGD, ${STEPS} steps`]],
    value: state.kind, act: (kind) => { state.kind = kind; renew(); },
  });
  const size = slider({
    label: "Its size ε, in every pixel", min: 0, max: MOST, step: 0.005, value: 0,
    shown: (v) => v.toFixed(3), act: (v) => { state.epsilon = v; refresh(); },
  });
  const aim = make("select", { id: "play-aim", change: () => { state.aim = aim.value; renew(); } },
    make("option", { value: "away" }, "away from what is read"),
    ...classes.map((name, k) => make("option", { value: k }, `towards ${name}`)));
  const found = make("p", { class: "hint", "aria-live": "polite" });
  const search = button("Find an ε that flips it", async () => {
    const { image, kind, aim: aimed } = state;
    const same = () => state.image === image && state.kind === kind && state.aim === aimed;
    const before = view(cards[0]).before.best, wanted = goal();
    if (before === wanted) return say(found, `It reads ${classes[wanted]} already.`);
    search.disabled = true;
    count(stage, 1);
    say(found, "Searching …");
    const does = wanted === null ? "flips it" : `makes it read ${classes[wanted]}`;
    const epsilon = await least(kind, same);
    const noise = epsilon && kind !== "noise" && wanted === null ? await least("noise", same) : undefined;
    count(stage, -1);
    search.disabled = !state.image;
    if (!same()) return;
    if (epsilon === null) return say(found, `None of the ε that were tried, up to ${MOST}, ${does}.`);
    const beside = noise === undefined ? "" : noise === null ? `, noise at none up to ${MOST}`
      : `, noise ${noise > epsilon ? "only " : ""}at ${noise.toFixed(3)}`;
    state.epsilon = epsilon;
    size.set(epsilon);
    say(found, `${NAMES[kind]} ${does} at ε = ${epsilon.toFixed(3)}${beside}.`);
    refresh();
  });
  /** The smallest ε with which the goal is met, of those tried: upwards in strides, and then between the last two.
   * Null where there is none, or where it is no longer wanted. */
  async function least(kind, wanted) {
    const stride = kind === "pgd" ? 0.1 : 0.02;
    for (let high = stride; high < MOST + 1e-6 && wanted(); high += stride) {
      if (!(await meets(high, kind))) continue;
      let low = high - stride;
      while (high - low > 0.005 + 1e-6) {
        const middle = Math.round(100 * (low + high)) / 200;
        if (await meets(middle, kind)) high = middle; else low = middle;
      }
      return Math.round(200 * high) / 200;
    }
    return null;
  }
  /** The class that the attack leads to, or null: away from what is read. */
  const goal = () => (state.aim === "away" || state.kind === "noise" ? null : Number(state.aim));

  // What the readers make of it.
  const cards = readers.map(({ name, network: key }) => {
    const tiles = [picture("the network's view"), picture("+ change, grey is 0"), picture("= the sum")];
    const verdict = make("p", { class: "verdict", "aria-live": "polite" });
    const badge = make("span", { class: "badge" }, "flipped");
    const chart = bars(classes);
    const card = make("section", { class: "reader" }, make("h3", {}, name, badge),
      make("div", { class: "sum" }, ...tiles.map(({ figure }) => figure)), verdict, chart.box);
    return { key, tiles, verdict, badge, chart, card, seen: null };
  });

  /** The reader's view of the image, with the signs of its gradient there, computed once. */
  function view(card) {
    if (card.seen?.image !== state.image || card.seen.goal !== goal()) {
      const before = reading(card.net, state.image);
      card.seen = { image: state.image, goal: goal(), before, signs: null };
    }
    return card.seen;
  }
  async function changed(card, epsilon, kind = state.kind) {
    const seen = view(card), { image } = state;
    const towards = seen.goal !== null;
    const label = seen.goal ?? seen.before.best;
    const random = uniform(20);
    if (epsilon === 0) return image;
    if (kind === "noise") return moved(image, image.map(() => (random() < 0.5 ? -1 : 1)), epsilon);
    if (kind === "fgsm") {
      seen.signs ??= attackSigns(card.net, image, label, towards);
      return moved(image, seen.signs, epsilon);
    }
    const start = moved(image, image.map(() => 2 * random() - 1), epsilon);
    let x = start;
    for (x of pgd(card.net, image, start, label, epsilon, STEPS, towards)) await frame();
    return x;
  }
  /** Whether another reading than before is what was aimed at. */
  const met = (before, after) => after !== before && (goal() === null || after === goal());
  async function meets(epsilon, kind) {
    await frame();
    if (!state.image) return false;
    const x = await changed(cards[0], epsilon, kind);
    return met(view(cards[0]).before.best, reading(cards[0].net, x).best);
  }
  function showEmpty({ tiles, chart, card, badge, verdict }) {
    for (const { canvas } of tiles) paint(canvas, new Float32Array(PIXELS));
    chart.clear();
    card.classList.remove("flipped");
    badge.hidden = true;
    say(verdict, "Nothing to read yet.");
  }
  const refresh = coalesced(stage, async () => {
    for (const card of cards) {
      const { image, epsilon, truth } = state;
      if (!image) {
        showEmpty(card);
        continue;
      }
      const { before } = view(card);
      const x = await changed(card, epsilon);
      if (state.image !== image) continue; // it is asked for again
      const after = epsilon ? reading(card.net, x) : before;
      paint(card.tiles[0].canvas, image);
      paint(card.tiles[1].canvas, x.map((v, i) => 0.5 + v - image[i]));
      paint(card.tiles[2].canvas, x);
      card.chart.show(before.shares, epsilon ? after.shares : null);
      const done = met(before.best, after.best);
      card.card.classList.toggle("flipped", done);
      card.badge.hidden = !done;
      say(card.badge, goal() === null ? "flipped" : `reads ${classes[after.best]}`);
      const word = ({ shares, best }) => `${classes[best]} (${percent(shares[best])})`;
      const wrong = truth !== null && before.best !== truth;
      const first = `It reads ${word(before)}${wrong ? `, but it is a ${classes[truth]}` : ""}`;
      const then = `${after.best === before.best ? "still " : ""}${word(after)}${wrong && after.best === truth ? ", rightly" : ""}`;
      say(card.verdict, `${first}${epsilon ? `;\nthen ${then}` : ""}.`);
      await frame();
    }
  });

  for (const card of cards) card.net = await network(card.key);
  stage.append(
    make("div", { class: "attack" },
      make("div", { class: "left" }, board, hint, tools, shelf),
      make("div", { class: "right" },
        make("div", { class: "controls" }, kinds, size.row,
          make("div", { class: "tools" }, make("label", { for: "play-aim" }, "Its aim"), aim, search), found),
        make("div", { class: "readers" }, ...cards.map(({ card }) => card)))));
  choose(0);
}

async function ganPanel({ network: key, latent, directions }, { classes, network, reader }, stage) {
  const COUNT = 30, STRIP = 7;
  const [net, eyes] = [await network(key), reader && (await network(reader))];
  const state = { seed: 1, latents: [], chosen: [0, 1], next: 0, share: 0, along: directions.map(() => 0) };
  const read = (image) => eyes && reading(eyes, image);
  const words = (found) => (found ? `${classes[found.best]}, ${percent(found.shares[found.best])}` : "");

  const sheet = Array.from({ length: COUNT }, (_, k) => {
    const canvas = make("canvas", { class: "pixels" });
    const under = make("span");
    const box = button("", () => pick(k), { class: "sample", "aria-pressed": "false" });
    box.append(canvas, under);
    return { canvas, under, box };
  });
  const big = picture("the blend");
  const strip = Array.from({ length: STRIP }, (_, k) => {
    const tile = picture();
    const act = () => { state.share = k / (STRIP - 1); blend.set(state.share); refresh(); };
    return { ...tile, box: make("button", { type: "button", class: "sample", click: act }, tile.figure) };
  });
  const blend = slider({
    label: "Blend from A to B", min: 0, max: 1, step: 0.01, value: 0, shown: (v) => `${Math.round(100 * v)} %`,
    act: (v) => { state.share = v; refresh(); },
  });
  const ways = directions.map((_, k) => slider({
    label: `Direction ${k + 1}`, min: -2, max: 2, step: 0.1, value: 0, shown: (v) => v.toFixed(1),
    act: (v) => { state.along[k] = v; refresh(); },
  }));
  const chart = eyes && bars(classes, false);

  function latentAt(share) {
    const z = between(...state.chosen.map((k) => state.latents[k]), share);
    directions.forEach((way, k) => way.forEach((v, i) => (z[i] += state.along[k] * v)));
    return z;
  }
  function pick(k) {
    state.chosen[state.next] = k;
    state.next = 1 - state.next;
    refresh();
  }
  async function shuffle() {
    const draw = normal(state.seed++);
    state.latents = sheet.map(() => draw(latent));
    for (const [k, { canvas, under, box }] of sheet.entries()) {
      const image = generate(net, state.latents[k]);
      const found = words(read(image));
      paint(canvas, image);
      under.textContent = found;
      box.dataset.words = `Sample ${k + 1}${found && `, read as ${found}`}`;
      if (k % 6 === 5) await frame();
    }
    refresh();
  }
  const refresh = coalesced(stage, async () => {
    sheet.forEach(({ box }, k) => {
      const letters = ["A", "B"].filter((_, i) => state.chosen[i] === k).join("");
      box.dataset.letter = letters;
      box.setAttribute("aria-pressed", letters !== "");
      box.setAttribute("aria-label", box.dataset.words + (letters && `, chosen as ${letters}`));
    });
    const image = generate(net, latentAt(state.share));
    const found = read(image);
    paint(big.canvas, image);
    const name = found ? `read as ${words(found)}` : "the blend";
    say(big.words, name);
    big.canvas.setAttribute("aria-label", `The blend, ${name}`);
    chart?.show(found.shares);
    for (const [k, { canvas, words: under, box }] of strip.entries()) {
      const share = k / (STRIP - 1);
      const tile = generate(net, latentAt(share));
      const one = read(tile);
      paint(canvas, tile);
      say(under, `${Math.round(100 * share)} %${one ? `\n${classes[one.best]}` : ""}`);
      box.setAttribute("aria-label", `Blend of ${Math.round(100 * share)} %${one ? `, read as ${words(one)}` : ""}`);
      box.classList.toggle("here", Math.abs(share - state.share) < 0.5 / (STRIP - 1));
    }
  });

  stage.append(
    make("div", { class: "gan" },
      make("div", {},
        make("h3", {}, "Samples"),
        make("p", { class: "hint" }, `Choose one for A, one for B, and so on in turn.${eyes
          ? " Below each: what the classifier reads. It names a class whatever it sees, also where you see none." : ""}`),
        make("div", { class: "sheet" }, ...sheet.map(({ box }) => box)),
        make("div", { class: "tools" }, button("Shuffle", shuffle))),
      make("div", {},
        make("h3", {}, "Between A and B"),
        make("div", { class: "blend" }, big.figure, ...(chart ? [chart.box] : [])),
        blend.row,
        make("div", { class: "strip" }, ...strip.map(({ box }) => box)),
        make("h3", {}, "A step to the side"),
        make("p", { class: "hint" }, "These four directions move the generator's first layer most. "
          + "The numbers are standard deviations: a random latent seldom lies further from 0."),
        make("div", { class: "ways" }, ...ways.map(({ row }) => row)),
        make("div", { class: "tools" }, button("Back to 0", () => {
          state.along.fill(0);
          ways.forEach((way) => way.set(0));
          refresh();
        })))));
  await shuffle();
}

async function diffusionPanel({ recipes }, { classes, network, reader }, stage) {
  const eyes = reader && (await network(reader));
  const T = recipes[0].alphaBar.length;
  const state = { seed: 1, done: 0, playing: false };
  const FILM = Array.from({ length: 9 }, (_, k) => Math.round((k / 8) * T));
  const shown = (x) => x.map((v) => (v + 1) / 2);

  const rows = [];
  for (const recipe of recipes) {
    const net = await network(recipe.network);
    const tiles = [picture("xₜ"), picture("x̂₀")];
    const film = FILM.map((done) => {
      const tile = picture();
      const label = `To step ${done}, t = ${T - done}: ${recipe.title}`;
      const box = make("button", { type: "button", class: "sample", "aria-label": label, click: () => go(done) }, tile.figure);
      return { ...tile, done, box };
    });
    const left = Math.sqrt(recipe.alphaBar[recipe.alphaBar.length - 1]);
    const end = left < 0.05 ? "its training ends in noise, where sampling starts"
      : `in training ${percent(left)} of the picture is left at the end, but sampling starts from noise alone`;
    const told = make("p", { class: "hint" });
    const card = make("section", { class: "recipe" }, make("h3", {}, recipe.title),
      make("p", { class: "hint" }, `It predicts ${recipe.predicts === "x0" ? "the clean picture x̂₀" : "the noise ε"}; ${end}.`),
      make("div", { class: "pair" }, ...tiles.map(({ figure }) => figure)),
      make("p", { class: "hint" }, `x̂₀ on the way; below each its t${eyes ? " and what it is read as" : ""}:`),
      make("div", { class: "strip" }, ...film.map(({ box }) => box)), told);
    rows.push({ recipe, net, tiles, film, card, told, states: [], normals: null });
  }
  /** What the classifier reads in x̂₀ with its share. It names a class whatever it sees, so noise is told apart. */
  function readIn(x0) {
    const { shares, best } = reading(eyes, shown(x0).map((v) => clamp(v, 0, 1)));
    return { share: shares[best], name: isNoise(x0) ? "noise" : classes[best], best };
  }
  /** The state after `done` steps, {x, x0}; each is computed once. */
  function stateAt(row, done) {
    const { recipe, net, states } = row;
    const steps = recipe.alphaBar.length;
    while (states.length <= done) {
      const before = states[states.length - 1];
      const t = steps - states.length; // the step that leads to the new state
      const x = before
        ? reverseStep(recipe.alphaBar, before.x, before.x0, t, t > 0 ? row.normals(PIXELS) : null)
        : row.normals(PIXELS);
      states.push({ x, x0: t > 0 ? cleanEstimate(net, recipe, x, t - 1) : x });
    }
    return states[done];
  }
  function restart() {
    for (const row of rows) Object.assign(row, { states: [], normals: normal(state.seed) });
    refresh();
    filled();
  }
  function go(done) {
    state.done = clamp(done, 0, T);
    way.set(state.done);
    if (!state.playing) pause();
    refresh();
  }
  const way = slider({
    label: "Steps done, from noise to picture", min: 0, max: T, step: 1, value: 0,
    shown: (v) => `${v} of ${T} (t = ${T - v})`, act: (v) => { pause(); go(v); },
  });
  const play = button("▶ Play", () => (state.playing ? pause() : start()));
  function pause() {
    state.playing = false;
    say(play, state.done === T ? "↺ Play again" : "▶ Play");
  }
  async function start() {
    state.playing = true;
    say(play, "❚❚ Pause");
    if (state.done === T) go(0);
    const pace = Math.max(4000 / T, 30); // milliseconds a step
    while (state.playing && state.done < T) {
      go(state.done + 1);
      await new Promise((wake) => setTimeout(wake, pace));
    }
    pause();
  }
  const filled = coalesced(stage, async () => {
    for (const row of rows) {
      const names = [];
      for (const { canvas, words, done } of row.film) {
        const { x0 } = stateAt(row, done);
        paint(canvas, shown(x0));
        if (eyes) names.push(readIn(x0).name);
        say(words, `${T - done}${eyes ? `\n${names.at(-1)}` : ""}`);
        await frame();
      }
      const last = names.at(-1), since = names.findLastIndex((name) => name !== last) + 1;
      if (last === "noise") say(row.told, since ? "It ends as noise." : "It never becomes a picture: what is left is noise.");
      else if (eyes) say(row.told, since ? `Decided: from t = ${T - FILM[since]} on it is read as ${last}.` : `It is read as ${last} all along.`);
    }
  });
  const refresh = coalesced(stage, async () => {
    for (const row of rows) {
      const { x, x0 } = stateAt(row, state.done);
      const t = T - state.done;
      paint(row.tiles[0].canvas, shown(x));
      paint(row.tiles[1].canvas, shown(x0));
      const found = eyes && readIn(x0);
      say(row.tiles[0].words, t === 0 ? "x₀, the sample" : `xₜ at t = ${t}`);
      say(row.tiles[1].words, !found ? "x̂₀" : found.name === "noise"
        ? `x̂₀: noise, yet read as ${classes[found.best]}` : `x̂₀, read as ${found.name} (${percent(found.share)})`);
      for (const tile of row.tiles) tile.canvas.setAttribute("aria-label", `${row.recipe.title}: ${tile.words.textContent}`);
      for (const { box, done } of row.film) box.classList.toggle("here", done === state.done);
    }
  });
  stage.append(
    make("div", { class: "controls" }, way.row,
      make("div", { class: "tools" },
        button("◀ Back", () => { pause(); go(state.done - 1); }, { "aria-label": "One step back" }), play,
        button("Step ▶", () => { pause(); go(state.done + 1); }, { "aria-label": "One step on" }),
        button("Another seed", () => { pause(); state.seed++; restart(); }))),
    make("div", { class: "recipes" }, ...rows.map(({ card }) => card)));
  restart();
}

async function askPanel({ network: key, facts, predicts, steps, noun }, { classes, network, reader, worker }, stage) {
  const BRUSH = 2.6, FILM = 10; // the brush's radius in pixels; pictures on the strip
  const LEVELS = repaintLevels(steps.length, 5, 2);
  const eyes = reader && (await network(reader));
  const unet = inWorker(worker, await network(key), facts);
  const state = { label: 0, scale: 1.5, seed: 1, run: null, way: [], total: steps.length, picture: null, hole: new Uint8Array(PIXELS) };
  const shown = (x) => x.map((v) => (v + 1) / 2);
  const words = (x0) => {
    if (!eyes) return "";
    const found = reading(eyes, shown(x0).map((v) => clamp(v, 0, 1)));
    return `, read as ${classes[found.best]} (${percent(found.shares[found.best])})`;
  };

  const asked = choice({ label: "Class", options: classes.map((name, k) => [String(k), name]), value: "0",
    act: (k) => (state.label = Number(k)) });
  const guidance = slider({ label: "Guidance", min: 0, max: 8, step: 0.5, value: state.scale,
    shown: (v) => `${v.toFixed(1)}${{ 0: ", the class is ignored", 1: ", as trained" }[v] ?? ""}`, act: (v) => (state.scale = v) });
  const tiles = [picture("xₜ"), picture("x̂₀")];
  const film = Array.from({ length: FILM }, (_, k) => {
    const tile = picture();
    const box = make("button", { type: "button", class: "sample", click: () => look(place(k)) }, tile.figure);
    return { ...tile, box };
  });
  const place = (k) => Math.round((k / (FILM - 1)) * (state.total - 1)); // of the strip's pictures among the states
  const back = slider({ label: "Look back", min: 1, max: steps.length, step: 1, value: 1,
    shown: (v) => `step ${v} of ${state.total}`, act: (v) => look(v - 1) });
  const told = make("p", { class: "hint", "aria-live": "polite" });

  /** Shows the state of that number, or the last one there is. */
  function look(k) {
    const at = Math.min(k, state.way.length - 1);
    if (at < 0) return;
    const { x, x0, t } = state.way[at];
    paint(tiles[0].canvas, shown(x));
    paint(tiles[1].canvas, shown(x0));
    say(tiles[0].words, t === undefined ? "on its way" : `xₜ at t = ${t.toFixed(2)}`);
    say(tiles[1].words, `x̂₀${words(x0)}`);
    for (const tile of tiles) tile.canvas.setAttribute("aria-label", tile.words.textContent);
    back.set(at + 1);
    film.forEach(({ box }, n) => box.classList.toggle("here", place(n) === at));
  }
  /** Makes ready for a way of `total` states. */
  function empty(total) {
    Object.assign(state, { way: [], total });
    back.input.max = total;
    film.forEach(({ canvas, box }, k) => {
      paint(canvas, new Float32Array(PIXELS));
      box.setAttribute("aria-label", `To step ${place(k) + 1} of ${total}`);
      box.disabled = true;
    });
    stopping.disabled = state.run === null;
  }
  /** Follows a way of `total` states to its end, unless it is stopped; resolves to its last state or null. */
  async function follow(way, total) {
    const run = (state.run = {});
    empty(total);
    const began = performance.now();
    count(stage, 1);
    say(told, "Drawing …");
    for await (const now of way) {
      if (state.run !== run) break;
      state.way.push(now);
      look(state.way.length - 1);
      showBoard();
      film.forEach(({ canvas, box }, k) => {
        if (place(k) !== state.way.length - 1) return;
        paint(canvas, shown(now.x0));
        box.disabled = false;
      });
    }
    count(stage, -1);
    if (state.run !== run) return null;
    state.run = null;
    const end = state.way.at(-1);
    say(told, `Done in ${((performance.now() - began) / 1000).toFixed(1)} s${words(end.x0)}.`);
    return end;
  }
  function stop() {
    state.run = null;
    say(told, `Stopped after step ${state.way.length} of ${state.total}.`);
    finish(null);
  }
  const request = () => ({ label: state.label, none: classes.length, scale: state.scale });
  const estimate = (asks) => (x, step) => guidedEstimate(unet, predicts, x, step, asks);
  async function drawIt() {
    const way = solved(estimate(request()), steps, normal(state.seed)(PIXELS));
    finish((await follow(way, steps.length))?.x0);
  }
  async function fill() {
    if (!state.hole.some(Boolean)) return say(told, `Draw a ${noun} and brush over a part of it first.`);
    const calls = LEVELS.filter((level, k) => level < LEVELS[k - 1]).length;
    const draw = normal(1000 + state.seed++);
    const way = repainted(estimate(request()), steps, LEVELS, state.picture, state.hole.slice(), draw);
    finish((await follow(way, calls))?.x);
  }
  /** The drawn picture goes to the board. */
  function finish(picture) {
    if (picture) Object.assign(state, { picture, hole: new Uint8Array(PIXELS) });
    stopping.disabled = state.run === null;
    showBoard();
  }

  // The board: what was drawn, to be brushed over with mouse, pen or finger.
  const board = make("canvas", { width: SIDE, height: SIDE, class: "board", role: "img" });
  function showBoard() {
    const brushed = state.hole.some(Boolean);
    const image = state.picture ? shown(state.picture) : new Float32Array(PIXELS);
    const inside = state.run && state.way.length ? shown(state.way.at(-1).x0) : image.map(() => NaN);
    const colour = (v) => (Number.isNaN(v) ? [213, 94, 0] : grey(v));
    paint(board, image.map((v, i) => (state.hole[i] ? inside[i] : v)), SIDE, colour);
    board.setAttribute("aria-label", !state.picture ? "An empty board" : `The ${noun}${brushed ? ", partly brushed over" : ""}`);
  }
  function brush(event) {
    const box = board.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((v) => v * SIDE);
    mark((row, column) => Math.hypot(column + 0.5 - x, row + 0.5 - y) < BRUSH);
  }
  function mark(covers) {
    if (state.run) return;
    if (!state.picture) return say(told, `Draw a ${noun} first.`);
    state.hole.forEach((_, i) => covers(Math.floor(i / SIDE), i % SIDE) && (state.hole[i] = 1));
    showBoard();
  }
  board.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    board.setPointerCapture(event.pointerId);
    brush(event);
  });
  board.addEventListener("pointermove", (event) => board.hasPointerCapture(event.pointerId) && brush(event));
  const halves = [["Upper half", (row) => row < SIDE / 2], ["Right half", (_, column) => column >= SIDE / 2]]
    .map(([text, covers]) => button(text, () => mark(covers)));
  const wipe = button("Clear the brush", () => { state.hole.fill(0); showBoard(); });
  const stopping = button("Stop", stop);

  stage.append(
    make("div", { class: "ask" },
      make("div", {}, asked, guidance.row, make("div", { class: "tools" }, button("Draw it", drawIt),
          button("Other noise", () => { state.seed++; drawIt(); }), stopping), told,
        make("div", { class: "pair" }, ...tiles.map(({ figure }) => figure)), back.row,
        make("div", { class: "strip" }, ...film.map(({ box }) => box))),
      make("div", {}, make("h3", {}, "Fill a part"),
        make("p", { class: "hint" }, `Draw a ${noun}, brush over a part of it, and have that drawn anew, as the class that is chosen.`),
        board, make("div", { class: "tools" }, ...halves, wipe, button("Fill it", fill)))));
  empty(steps.length);
  showBoard();
}

async function vaePanel({ network: key, points, labels }, { classes, network, reader }, stage) {
  // Okabe and Ito's colours, lightened where they stand on the dark plane; the mark names the class too.
  const COLOURS = ["#56b4e9", "#ff8c4a", "#3fd0a4", "#e79bc7", "#e69f00", "#8fd0ff", "#ffffff", "#f0e442", "#b9b9b9", "#ff7ba3"];
  const REACH = 3.5, MOSAIC = 15, SIZE = MOSAIC * SIDE;
  const [net, eyes] = [await network(key), reader && (await network(reader))];
  const state = { z: points[0].map((v) => clamp(v, -REACH, REACH)), show: "both" };
  const plane = make("canvas", { class: "plane", width: 2 * SIZE, height: 2 * SIZE, role: "img" });
  plane.setAttribute("aria-label", "The plane of the two latent numbers; the sliders move over it.");
  const big = picture("decoded");
  const chart = eyes && bars(classes, false);
  const across = slider({ label: "z₁, to the right", min: -REACH, max: REACH, step: 0.05, value: state.z[0],
    shown: (v) => v.toFixed(2), act: (v) => { state.z[0] = v; refresh(); } });
  const up = slider({ label: "z₂, upwards", min: -REACH, max: REACH, step: 0.05, value: state.z[1],
    shown: (v) => v.toFixed(2), act: (v) => { state.z[1] = v; refresh(); } });

  const mosaic = make("canvas", { width: SIZE, height: SIZE });
  const tile = make("canvas");
  for (let row = 0; row < MOSAIC; row++)
    for (let column = 0; column < MOSAIC; column++) {
      const at = (k) => (((k + 0.5) / MOSAIC) * 2 - 1) * REACH;
      paint(tile, decode(net, Float32Array.of(at(column), -at(row))));
      mosaic.getContext("2d").drawImage(tile, column * SIDE, row * SIDE);
    }
  const toPlane = ([x, y]) => [(x / REACH + 1) * SIZE, (1 - y / REACH) * SIZE];
  function drawPlane() {
    const pen = plane.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = "#10151b";
    pen.fillRect(0, 0, 2 * SIZE, 2 * SIZE);
    pen.globalAlpha = state.show === "both" ? 0.3 : 1;
    if (state.show !== "marks") pen.drawImage(mosaic, 0, 0, 2 * SIZE, 2 * SIZE);
    pen.globalAlpha = 1;
    pen.font = "bold 22px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    if (state.show !== "pictures")
      points.forEach((point, k) => {
        pen.fillStyle = COLOURS[labels[k] % COLOURS.length];
        pen.fillText(classes[labels[k]].slice(0, 2), ...toPlane(point));
      });
    const [x, y] = toPlane(state.z);
    for (const [colour, width] of [["#000", 9], ["#fff", 4]]) {
      Object.assign(pen, { strokeStyle: colour, lineWidth: width });
      pen.beginPath();
      pen.arc(x, y, 20, 0, 2 * Math.PI);
      pen.stroke();
    }
  }
  const refresh = coalesced(stage, async () => {
    const image = decode(net, Float32Array.from(state.z));
    const found = eyes && reading(eyes, image);
    drawPlane();
    paint(big.canvas, image);
    const words = `z = (${state.z.map((v) => v.toFixed(2)).join(", ")})`
      + (found ? `, read as ${classes[found.best]} (${percent(found.shares[found.best])})` : "");
    say(big.words, words);
    big.canvas.setAttribute("aria-label", `Decoded: ${words}`);
    chart?.show(found.shares);
  });
  const follow = (event) => {
    const box = plane.getBoundingClientRect();
    const at = (share) => clamp((share * 2 - 1) * REACH, -REACH, REACH);
    state.z = [at((event.clientX - box.left) / box.width), -at((event.clientY - box.top) / box.height)];
    across.set(state.z[0]);
    up.set(state.z[1]);
    refresh();
  };
  plane.addEventListener("pointerdown", (event) => {
    plane.setPointerCapture(event.pointerId);
    follow(event);
  });
  plane.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" || event.buttons) follow(event);
  });
  stage.append(
    make("div", { class: "vae" },
      make("div", {}, plane),
      make("div", {}, make("div", { class: "blend" }, big.figure, ...(chart ? [chart.box] : [])), across.row, up.row,
        choice({ label: "On the plane", value: "both", act: (v) => { state.show = v; refresh(); },
          options: [["both", "both"], ["marks", "held-out marks"], ["pictures", "decoded pictures"]] }))));
  await refresh();
}

async function noisePanel({ clean, steps, sigmas, restored }, _, stage) {
  const canvasOf = async (url) => {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas;
  };
  const first = await canvasOf(clean);
  const [width, height] = [first.width, first.height];
  const original = greysOf(first);
  const loaded = new Map([[clean, original]]);
  const greysAt = async (url) => {
    if (!loaded.has(url)) loaded.set(url, greysOf(await canvasOf(url)));
    return loaded.get(url);
  };
  const state = { step: steps.length, by: "blur", sigma: 1, chosen: false }; // whether the width was chosen for the step
  const best = steps.map(() => null); // of the blur at each step: its width and decibels
  const [left, right] = [picture("noisy"), picture("restored")];
  const BLUR = "blur, width by hand", CLEAN = "the clean picture";
  const options = [["blur", BLUR], ...Object.keys(restored).map((name) => [name, name]), ["clean", CLEAN]];
  const by = choice({ label: "Filter of the right picture", options, value: "blur", act: (v) => { state.by = v; refresh(); } });
  const step = slider({ label: "Noise", min: 0, max: steps.length, step: 1, value: state.step,
    shown: (v) => (v ? `step ${v}, σ = ${sigmas[v - 1].toFixed(2)}` : "none"), act: (v) => { Object.assign(state, { step: v, chosen: false }); refresh(); } });
  const wide = slider({ label: "Width of the blur, in pixels", min: 0, max: 4, step: 0.1, value: state.sigma,
    shown: (v) => v.toFixed(1), act: (v) => { Object.assign(state, { sigma: v, chosen: true }); refresh(); } });
  const told = make("p", { class: "hint", "aria-live": "polite" });
  const decibels = (x) => {
    const value = psnr(original, x);
    return Number.isFinite(value) ? `PSNR ${value.toFixed(1)} dB` : "no error";
  };
  const refresh = coalesced(stage, async () => {
    const noisy = state.step ? await greysAt(steps[state.step - 1]) : original;
    let result = original, name = Object.fromEntries(options)[state.by];
    if (state.by === "blur") {
      result = blurred(noisy, width, height, state.sigma);
      const value = psnr(original, result);
      if (state.step && state.chosen && !(value <= best[state.step - 1]?.value)) best[state.step - 1] = { value, sigma: state.sigma };
    } else if (state.by !== "clean" && state.step) result = await greysAt(restored[state.by][state.step - 1]);
    else if (state.by !== "clean") name = "no noise to filter";
    wide.row.hidden = state.by !== "blur";
    paint(left.canvas, noisy, width);
    paint(right.canvas, result, width);
    say(left.words, `${state.step ? `noise, σ = ${sigmas[state.step - 1].toFixed(2)}` : "no noise"}: ${decibels(noisy)}`);
    say(right.words, `${name}: ${decibels(result)}`);
    const tried = best.map((one, k) => one && `step ${k + 1}: ${one.sigma.toFixed(1)} (${one.value.toFixed(1)} dB)`).filter(Boolean);
    say(told, tried.length ? `Best width that you have tried: ${tried.join(", ")}.` : "");
    for (const tile of [left, right]) tile.canvas.setAttribute("aria-label", tile.words.textContent);
  });
  stage.append(make("div", { class: "controls" }, step.row, by, wide.row, told),
    make("div", { class: "photos" }, left.figure, right.figure));
  await refresh();
}

// --- the start -------------------------------------------------------------------------------------

const PANELS = {
  attack: attackPanel, gan: ganPanel, diffusion: diffusionPanel, ask: askPanel, vae: vaePanel, noise: noisePanel,
};

function start() {
  const data = JSON.parse(document.getElementById("playground-data").textContent);
  const networks = new Map();
  const network = (name) => {
    if (!networks.has(name)) {
      const text = document.getElementById(`weights-${name}`).textContent.trim();
      networks.set(name, networkOf(text, data.tensors[name]));
    }
    return networks.get(name);
  };
  const worker = document.getElementById("unet-worker")?.textContent;
  const shared = { classes: data.classes, reader: data.reader, network, worker };
  const tabs = [...document.querySelectorAll('#playground [role="tab"]')];
  const built = new Map();

  /** Builds a panel at its first use: only then are its networks unpacked. */
  function build(name) {
    if (built.has(name)) return;
    const stage = document.querySelector(`#play-${name} .stage`);
    count(stage, 1);
    const ready = PANELS[name](data.panels[name], shared, stage).then(() => count(stage, -1), (error) => {
      stage.append(make("p", { class: "hint" }, "This browser is too old for the playground; its newer versions can show it."));
      console.error(error);
    });
    built.set(name, ready);
  }
  function open(tab, focus) {
    for (const other of tabs) {
      other.setAttribute("aria-selected", other === tab);
      other.tabIndex = other === tab ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = other !== tab;
    }
    if (focus) tab.focus();
    build(tab.dataset.panel);
  }
  tabs.forEach((tab, k) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const to = { Home: 0, End: tabs.length - 1 }[event.key] ?? (step && k + step);
      if (to === undefined) return;
      event.preventDefault();
      open(tabs[(to + tabs.length) % tabs.length], true);
    });
  });
  /** A link to a panel opens it. */
  function follow() {
    const tab = tabs.find((one) => `#${one.getAttribute("aria-controls")}` === location.hash);
    if (tab) {
      open(tab);
      document.getElementById("playground").scrollIntoView();
    }
    return tab;
  }
  document.getElementById("playground").hidden = false;
  for (const link of document.querySelectorAll("[data-plays]")) link.hidden = false;
  addEventListener("hashchange", follow);
  requestAnimationFrame(() => setTimeout(() => follow() ?? open(tabs[0])));
  Object.assign(globalThis.playground, { data, network, open: (name) => open(tabs.find((tab) => tab.dataset.panel === name)) });
}

// For the tests, and for whoever opens the browser's console.
globalThis.playground = {
  unpack, networkOf, conv3, maxPool2, dense, classify, reading, inputGradient, moved, attackSigns, pgd, generate,
  decode, answer, toX0, cleanEstimate, reverseStep, guidedEstimate, solved, repaintLevels, repainted, inWorker, uniform, normal, between, framed, inkOf, resized, blurred, psnr, half, isNoise,
};
start();
