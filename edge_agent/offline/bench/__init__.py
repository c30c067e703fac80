"""Speed of the embedding stage and of the whole agent."""
