"""Bodies of requests and answers: the fields of vLLM-Omni 0.30 and those of OpenAI that mean something here."""
