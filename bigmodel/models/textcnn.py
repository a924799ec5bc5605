"""Convolutional text classifier, with a bag of hashed n-grams beside the convolutions as an option.

Shapes: B texts, T tokens, E embedding, F filters of one width, D n-gram embedding, K labels.
"""

from dataclasses import field

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel

HASH_PRIME = 2**31 - 1  # with factors below 2^31 no product leaves int64
HASH_FACTOR = 1_103_515_245


@strict
class TextCNNConfig(PreTrainedConfig):
    """Convolutional text classifier.

    embedding_size     width of a token's vector
    kernel_sizes       widths of the convolutions, in tokens; [] leaves them out
    num_filters        filters of each width
    ngram_orders       lengths of the n-grams in the bag, such as [1, 2, 3]; [] is no bag
    ngram_buckets      rows of the n-gram table; n-grams that share a row are told apart by their neighbours only
    ngram_size         width of an n-gram's vector; 0 gives an n-gram a weight for each label instead
    ngram_scale        what such weights count: they learn so many times faster than the rest, as each is met rarely
    embedding_dropout  probability that a component of a token's vector is dropped
    dropout            the same for the features the classifier sees
    initializer_range  deviation of the weights that `init: normal` draws
    """

    model_type = "textcnn"

    vocab_size: int = 30_000
    embedding_size: int = 128
    kernel_sizes: list[int] = field(default_factory=lambda: [2, 3, 4])
    num_filters: int = 100
    ngram_orders: list[int] = field(default_factory=list)
    ngram_buckets: int = 65_536
    ngram_size: int = 32
    ngram_scale: float | int = 10.0
    embedding_dropout: float | int = 0.0
    dropout: float | int = 0.5
    pad_token_id: int | None = 0
    initializer_range: float = 0.02

    def validate_features(self) -> None:
        if not self.kernel_sizes and not self.ngram_orders:
            raise ValueError("kernel_sizes and ngram_orders are both empty: nothing is left to read the text with")


class TextCNNForSequenceClassification(PreTrainedModel):
    """Convolutions over token vectors, their maxima over the text, dropout, linear head (Kim, 2014, arXiv:1408.5882).

    A window may reach over either end of the text and sees zeros there ("wide" convolution), so a text shorter than the
    widest kernel has windows too. The window of zeros alone counts for every text, as one over padding would: padding
    cannot change an answer.

    With `ngram_orders` the mean vector of the text's n-grams stands beside the maxima (fastText: Joulin et al., 2016,
    arXiv:1607.01759). The n-grams are hashed here, from input_ids: the model directory needs nothing else.

    With `ngram_size` 0 the n-grams vote: each adds its weight for every label, from 0, a linear model of its own beside
    the network (wide & deep: Cheng et al., 2016, arXiv:1606.07792). The answer is the mean of the two logits, and in
    training a text is read by one of the two: the quicker one would otherwise explain it to the other's loss.
    """

    config_class = TextCNNConfig
    _input_embed_layer = "embeddings"

    def __init__(self, config: TextCNNConfig) -> None:
        super().__init__(config)
        self.embeddings = None  # n-grams alone need no vectors of tokens
        if config.kernel_sizes:
            self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_size, config.num_filters, size, padding=size - 1) for size in config.kernel_sizes
        )
        num_labels, num_features = len(config.id2label or {}), config.num_filters * len(config.kernel_sizes)
        self.votes = bool(config.ngram_orders) and not config.ngram_size
        self.starts_at_zero = {"ngrams"} if self.votes else set()
        self.ngrams = None
        if config.ngram_orders:
            # not an EmbeddingBag: its backward pass on a CPU takes twice as long
            self.ngrams = nn.Embedding(config.ngram_buckets + 1, config.ngram_size or num_labels, padding_idx=0)
            num_features += config.ngram_size
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(num_features, num_labels) if num_features else None
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,  # (B, T)
        attention_mask: Tensor | None = None,  # (B, T), 0 marks padding, wherever it stands
        labels: Tensor | None = None,  # (B,)
        inputs_embeds: Tensor | None = None,  # (B, T, E), for the convolutions; n-grams are made of input_ids
    ) -> SequenceClassifierOutput:
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None, "the model needs input_ids or inputs_embeds"
        order, real = reading_order(attention_mask, given)  # (B, T)
        ids = None if input_ids is None else input_ids.gather(1, order)
        if inputs_embeds is not None:
            inputs_embeds = inputs_embeds.gather(1, order[..., None].expand_as(inputs_embeds))
        if not self.votes:
            logits = self.network(ids, real, inputs_embeds)
        elif self.classifier is None:
            logits = self.vote(ids, real)
        elif self.training and len(real) > 1:
            logits = self.by_turns(ids, real, inputs_embeds)
        else:
            logits = (self.network(ids, real, inputs_embeds) + self.vote(ids, real)) / 2
        loss = None if labels is None else functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def network(self, ids: Tensor | None, real: Tensor, embedded: Tensor | None) -> Tensor:
        """Logits (B, K) of the convolutions and of the n-grams' vectors."""
        features = []
        if self.embeddings is not None:
            embedded = self.embeddings(ids) if embedded is None else embedded
            features += self.maxima(self.embedding_dropout(embedded) * real[..., None])
        if self.ngrams is not None and not self.votes:
            total, count = self.bag(ids, real)
            features.append(total / count)  # (B, D)
        assert self.classifier is not None, "without features there is no network"
        logits: Tensor = self.classifier(self.dropout(torch.cat(features, dim=-1)))
        return logits

    def vote(self, ids: Tensor | None, real: Tensor) -> Tensor:
        """Logits (B, K) of the n-grams' weights. Over the root of their number: a long text has more to say.

        The table holds an n-gram's weights by their cosine transform. Adam steps as far for a small gradient as for a
        large one: of the weights themselves, those of the labels that a text is not of as far as that of its own.
        """
        total, count = self.bag(ids, real)
        scale: float = self.config.ngram_scale
        return total @ cosines(total.shape[1]).to(total) * (scale / count.sqrt())

    def bag(self, ids: Tensor | None, real: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over the text's n-grams (B, D), and their number (B, 1), at least 1."""
        assert self.ngrams is not None, "without n-grams there is no bag"
        assert ids is not None, "n-grams are made of input_ids: give them beside inputs_embeds"
        rows = hash_ngrams(ids, real, self.config.ngram_orders, self.config.ngram_buckets)
        present = rows > 0
        total = (self.ngrams(rows) * present[..., None].to(self.ngrams.weight.dtype)).sum(1)
        return total, present.sum(1, keepdim=True).clamp(min=1).to(total.dtype)

    def by_turns(self, ids: Tensor | None, real: Tensor, embedded: Tensor | None) -> Tensor:
        """Logits (B, K) for training: a random half of the texts is read by the network, the others' n-grams vote."""
        assert ids is not None, "n-grams are made of input_ids: give them beside inputs_embeds"
        turns = torch.randperm(len(real), device=real.device)
        half = len(real) // 2
        read, counted = turns[:half], turns[half:]
        of_network = self.network(ids[read], real[read], None if embedded is None else embedded[read])
        of_votes = self.vote(ids[counted], real[counted])
        return torch.cat([of_network, of_votes])[turns.argsort()]

    def maxima(self, embedded: Tensor) -> list[Tensor]:
        """The strongest response of each filter, (B, F) for each width. embedded (B, T, E) is 0 at padding."""
        image = embedded.transpose(1, 2).unsqueeze(2)  # (B, E, 1, T), channels last in memory
        return [strongest(convolution, image) for convolution in self.convolutions]


def cosines(size: int) -> Tensor:
    """The orthonormal discrete cosine transform, a wave each row: (size, size)."""
    number = torch.arange(size)
    waves: Tensor = torch.cos(torch.pi / size * number[:, None] * (number + 0.5)) * (2 / size) ** 0.5
    waves[0] = size**-0.5
    return waves


def reading_order(attention_mask: Tensor | None, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The indices that put a text's real tokens first, in their order, and which places are then real: both (B, T)."""
    mask = torch.ones(inputs.shape[:2], device=inputs.device) if attention_mask is None else attention_mask
    padding = mask == 0  # (B, T)
    order = padding.to(torch.uint8).argsort(dim=1, stable=True)
    return order, ~padding.gather(1, order)


def strongest(convolution: nn.Module, image: Tensor) -> Tensor:
    """relu and maximum over the windows, and the window of zeros: (B, E, 1, T) -> (B, F).

    As a 2-d convolution of height 1 on channels-last memory it trains up to a quarter faster on a CPU.
    """
    assert isinstance(convolution, nn.Conv1d) and convolution.bias is not None
    kernel = convolution.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # (F, E, 1, size)
    around = (0, kernel.shape[-1] - 1)
    responses = functional.conv2d(image, kernel, convolution.bias, padding=around).squeeze(2)  # (B, F, T + size - 1)
    # the same values; amax is faster forwards, max backwards
    maximum = responses.max(-1).values if torch.is_grad_enabled() else responses.amax(-1)
    return functional.relu(torch.maximum(maximum, convolution.bias.to(maximum.dtype)))


def hash_ngrams(input_ids: Tensor, real: Tensor, orders: list[int], buckets: int) -> Tensor:
    """Rows 1..buckets of the n-grams that start at each token, 0 for none: (B, T) -> (B, orders * T)."""
    rows = []
    for order in orders:
        keys, valid = torch.full_like(input_ids, order), torch.ones_like(real)
        for offset in range(order):
            keys = (keys * HASH_FACTOR + shift(input_ids, offset) + 1) % HASH_PRIME
            valid = valid & shift(real, offset)
        rows.append(torch.where(valid, keys % buckets + 1, 0))
    return torch.cat(rows, dim=1)


def shift(values: Tensor, offset: int) -> Tensor:
    """values (B, T) moved left by offset; zeros follow the end."""
    return functional.pad(values, (0, offset))[:, offset:]
