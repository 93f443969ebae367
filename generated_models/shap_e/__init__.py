"""Ported pipelines of the shap_e family."""
