"""A tokenizer of a user, and classes that cannot be one."""

import torch


class MeanColour(torch.nn.Module):
    """The brightness of each quarter of an image, in 16 levels."""

    def __init__(self, levels: int = 16, side: int = 16) -> None:
        super().__init__()
        self.codebook_size, self.side, self.grid = levels, side, (2, 2)
        self.register_buffer("brightness", torch.linspace(-1, 1, levels))

    @property
    def weights_hash(self) -> str:
        return f"mean-colour-{self.codebook_size}"

    def encode(self, images_BCHW):
        means_BHW = torch.nn.functional.adaptive_avg_pool2d(images_BCHW, self.grid).mean(1)
        return (means_BHW.flatten(1)[..., None] - self.brightness).abs().argmin(-1)

    def decode(self, codes_BL):
        values_BCHW = self.brightness[codes_BL].view(-1, 1, *self.grid).expand(-1, 3, -1, -1)
        return torch.nn.functional.interpolate(values_BCHW, size=(self.side, self.side))


class FromFile(MeanColour):
    def __init__(self, file):  # without a type
        super().__init__()
        self.file = file


class Half(torch.nn.Module):
    grid = (2, 2)

    def encode(self, images_BCHW):
        return None


class NoModule:
    pass
