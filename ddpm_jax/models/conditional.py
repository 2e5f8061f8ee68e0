"""A network conditioned on labels, texts and images."""

import flax.linen as nn
import jax

from ddpm_jax.guidance import Condition
from ddpm_jax.models.patch_transformer import PatchTransformer
from ddpm_jax.models.text import TextEncoder
from ddpm_jax.models.unet import UNet


class ConditionalNetwork(nn.Module):
    """A network that takes a `Condition`, with a text encoder for texts.

    Its parameters are those of `net` and, with a text encoder, `text`.
    """

    net: UNet | PatchTransformer
    text: TextEncoder | None = None

    def setup(self) -> None:
        nn.share_scope(self, self.net)

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Condition | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """The prediction for x [B, H, W, C] at times t [B], given a condition; see `UNet`."""
        label, _, context, mask, image = self.encode_text(condition or Condition())
        return self.net(x, t, label=label, context=context, mask=mask, image=image, dropout_keys=dropout_keys)

    def encode_text(self, condition: Condition) -> Condition:
        """The condition with its tokens encoded to a context: once is enough for all steps of a sampler.

        Raises:
            ValueError: if there are tokens and no text encoder, or both tokens and a context.
        """
        if condition.tokens is None:
            return condition
        if self.text is None:
            raise ValueError("a text is given, but the network was made without a text encoder")
        if condition.context is not None:
            raise ValueError("both a text and a context are given: the network attends to one of them")
        return condition._replace(tokens=None, context=self.text(condition.tokens), mask=condition.tokens > 0)
