"""What is trained on and measured: data sets, picture files, scenes."""
