"""Networks: autoencoders, discriminators and LPIPS, under the parameter names of the published checkpoints."""
