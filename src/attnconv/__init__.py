"""What self-attention does that convolution does not, and what it costs."""
