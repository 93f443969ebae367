"""What a reviewer reads: each difference between diffusers and a port, with the rule that made it."""
