"""Captions and tags of image collections, beside the images or in a folder of their own."""
