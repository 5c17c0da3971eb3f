"""The colors that a scene draws from; each thing varies its own around one of these."""

from .canvas import Color


def _colors(text: str) -> tuple[Color, ...]:
    """Colors written as six hexadecimal digits each."""
    return tuple(tuple(bytes.fromhex(word)) for word in text.split())


WALLS = _colors(
    "cebea0 ded4be b2604c 965444 c4a06e a8a8a6 d6c896 bc8c78 9ca4ac e2ded6 8c8074 ccaa8c 807876 bec4b4 "
    "ac7858 766a62"
)
TRIMS = _colors("e8e4da d4ccbe 787068 4a4644 c4b4a0")
ROOFS = _colors("8e4a38 703c30 5c585a 4a4646 7c6050")
PAINTS = _colors(
    "e2e3e4 ced0d2 1c1d20 282a2e 787c80 a0a3a6 54585e 8e181c b0241e 1a3468 32548c 244238 786854 c4aa3c "
    "56282c 648296"
)
CLOTHES = _colors(
    "24262c 343846 463c36 82282c 2c466e c8c4bc 606468 3c543c aa783c b44664 d2aa3c 5a6e96 96969a 783c28 286e78"
)
TROUSERS = _colors("262c3e 1e1f22 464a50 6e6250 38425a 5a3c32 968c7c")
SKINS = _colors("e8bea0 d8a886 b47e5c 865a40 604232")
HAIRS = _colors("221c1a 483224 785634 b0905c 807e7c 1c1a1c")
GREENS = _colors("587434 4a6832 687c3a 425c34 78843e 5c6e46")
AUTUMN = _colors("a87a2e 965c2c 887432 6e7436 b28c3c")
BARKS = _colors("58483a 685a4a 463e36 7c7468")
METALS = _colors("686c70 4e5254 384840 868a8c 403e3e")
SHOP_BANDS = _colors("a82826 1e543c 1c3e78 363230 e2b43c d6d0c4 783c6e 287882")
SHOP_GLASS = _colors("2c3238 464e54 686050 3c423c")
SHOP_GOODS = _colors("aa9678 78808c b45a46 c8c4b4 566e5a")
DOORS = _colors("4a2c20 283c36 3e424a 6e2422")
PAVINGS = _colors("9c9892 8c8a88 a49484 968074 808284")
GRASSES = _colors("687a3e 7a7e46 58703a 887a54")
FENCES = _colors("8c6e50 604e3e 3c3e3e bebab0 465a4c")
SHOES = _colors("1e1c1c d2d0cc 463226")
BUSES = _colors("d6b028 be2422 e6e6e2 2860a0 3c8254 969ca0")
BOXES = _colors("e2e2de c8ccce b03c28 3c5a8c d6be5a")
TRAMS = _colors("ce2828 e4e2d8 deb832 2c5c96 3c8260")
TRAM_TRIMS = _colors("eceae2 3c3e42 b42828 284678")
BINS = _colors("3c4640 787c7e c4a028 463c34 2e4a6e")
BOLLARDS = _colors("3c3e40 962824 aaacaa")
BIKE_LANES = _colors("96483c 8a4238 5a7a5e")
CARAVANS = _colors("d6d4cc b4b8bc")
PANES = _colors("3a4654 465462 303840 405258")
