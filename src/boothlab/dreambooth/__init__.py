"""DreamBooth-LoRA training: the loss, the data, the class images and the callbacks."""
