"""The gate ``export``: an exported graph is executed, and its logits are held to the model's."""
