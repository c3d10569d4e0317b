"""T-ELAINE: adapt Llama-family language models to medical text in several languages, with proof."""

__version__ = "0.1.0"
