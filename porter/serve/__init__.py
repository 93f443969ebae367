"""The online server: one model behind the endpoints of OpenAI and vLLM-Omni."""
