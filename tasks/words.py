"""Text in a language that does not exist, for transformers."""

import torch

_WORDS, _COUNT, _FOLLOWERS = 300, 10000, 4
_BREAKS = (" ", " ", " ", " ", " ", " ", " ", ", ", ". ", "\n")


def language(generator: torch.Generator) -> str:
    """10,000 words of a random language of 300, some 60,000 characters.

    A word has 1 to 9 letters, of frequencies that fall as 1 / rank, as those of the words do. Half
    of the words are drawn from four that like to follow the one before. Three of ten end with a
    comma, a full stop or a line.
    """
    letters = torch.arange(1, 27).reciprocal()
    lengths = torch.randint(1, 10, (_WORDS,), generator=generator).tolist()
    spelled = [
        "".join(chr(97 + i) for i in torch.multinomial(letters, n, True, generator=generator))
        for n in lengths
    ]
    ranks = torch.arange(1, _WORDS + 1).reciprocal()
    any_word = torch.multinomial(ranks, _COUNT, True, generator=generator).tolist()
    likes = torch.multinomial(ranks.expand(_WORDS, -1), _FOLLOWERS, generator=generator).tolist()
    which = torch.randint(2 * _FOLLOWERS, (_COUNT,), generator=generator).tolist()
    breaks = torch.randint(len(_BREAKS), (_COUNT,), generator=generator).tolist()
    current, parts = 0, []
    for drawn, liked, pause in zip(any_word, which, breaks, strict=True):
        current = likes[current][liked] if liked < _FOLLOWERS else drawn
        parts += [spelled[current], _BREAKS[pause]]
    return "".join(parts)
