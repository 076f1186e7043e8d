"""A network for tests of training: of a short training, most is to trace it layer by layer."""

import keras


def build_shallow(input_shape: tuple[int, int, int], weights: None = None, include_top: bool = False) -> keras.Model:
    """In place of the network `light`: one convolution."""
    images = keras.Input(input_shape)
    maps = keras.layers.Conv2D(32, 5, 2, padding="same", use_bias=False, kernel_initializer="he_normal")(images)
    maps = keras.layers.Activation("relu")(keras.layers.BatchNormalization(momentum=0.9)(maps))
    return keras.Model(images, maps, name="light")
