"""Accuracy of what is deployed: answers of a device to a data set, and the figures that are made of them."""
