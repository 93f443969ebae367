"""VAEs that several ranks decode with: there are none in one process, so ports keep diffusers' own."""
