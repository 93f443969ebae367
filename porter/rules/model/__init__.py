"""Rules for model files: transformers, controlnets and the blocks they are made of."""
