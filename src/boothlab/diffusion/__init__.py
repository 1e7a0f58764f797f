"""The diffusion backbone: loading, adapters and sampling."""
