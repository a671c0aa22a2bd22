"""Fine-tuning of the decoder with optax: data, prompts simulated on the device, losses, the step and the loop."""
