"""A port against diffusers: how long a step of the denoiser and a whole call take, and how much memory.

Both sides are loaded in one process and run by turns, so that what else the machine does meets both alike.
"""

from __future__ import annotations
