"""T-ELAINE: adapt Llama-family language models to medical text in several languages, with proof."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # `python -m t_elaine.train`: this runs before the command's own file imports JAX
    from t_elaine.machine import leave_if_jax_is_mixed

    leave_if_jax_is_mixed(sys.orig_argv)
    if "t_elaine.train" in sys.orig_argv:
        from t_elaine.huge_pages import start_again

        start_again()
