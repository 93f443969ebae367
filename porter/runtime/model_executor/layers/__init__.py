"""Linear and norm layers with vLLM's signatures and single-process semantics."""
