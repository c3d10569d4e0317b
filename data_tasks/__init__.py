"""Tasks and mixtures that ship with T-ELAINE, one module for each family of corpora; made with t_elaine.data.tasks."""
