"""Pictures of masks: they are images, and show the keys that are seen."""

import xml.etree.ElementTree as ET

import pytest
import torch

from attn_ops.fmha.attn_bias import (
    AlibiBias,
    BlockDiagonalMask,
    BlockSparseMask,
    LowerTriangularMask,
    PagedBlockDiagonalPaddedKeysMask,
    _drawing,
)

SVG = "{http://www.w3.org/2000/svg}"


def cells(image):
    """Return the coloured rectangles of an SVG image: (x, y, width, colour)."""
    rectangles = ET.fromstring(image).iter(f"{SVG}rect")  # noqa: S314  our own
    return [(float(r.get("x", 0)), float(r.get("y", 0)), r.get("fill")) for r in rectangles]


def drawn(mask, shape=None):
    shape = mask.natural_shape() if shape is None else shape
    return _drawing.picture("mask", mask.mask_spec(), shape).sequence


def test_picture_is_the_materialized_mask():
    mask = BlockDiagonalMask.from_seqlens([2, 3, 1], [4, 3, 2]).make_causal_from_bottomright()
    assert torch.equal(drawn(mask) >= 0, mask.materialize((6, 9)) == 0)
    tables = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    paged = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [3, 1], tables, 2)
    assert torch.equal(drawn(paged) >= 0, paged.materialize((2, 8)) == 0)


def test_sequences_have_colours_of_their_own():
    image = BlockDiagonalMask.from_seqlens([2, 3])._repr_svg_()
    _background, *seen = cells(image)
    colours = [colour for _, _, colour in seen]
    assert len(seen) == 5
    assert colours[:2] == [_drawing._COLOURS[0]] * 2
    assert colours[2:] == [_drawing._COLOURS[1]] * 3


def test_image_names_the_mask_and_its_lengths():
    image = BlockDiagonalMask.from_seqlens([2, 3], [4, 4])._repr_svg_()
    texts = [text.text for text in ET.fromstring(image).iter(f"{SVG}text")]  # noqa: S314
    assert texts == ["BlockDiagonalMask", "5 queries ↓, 8 keys →"]


def test_large_masks_are_drawn_at_a_few_places():
    mask = BlockSparseMask.local_and_global(1000, 64)
    picture = drawn(mask)
    assert picture.shape == (96, 96)
    assert (picture.diagonal() == 0).all()
    assert len(mask._repr_svg_()) < 100_000


def test_masks_for_all_lengths_are_drawn_small():
    assert LowerTriangularMask()._repr_svg_().count("<rect") == 17
    assert len(cells(AlibiBias.for_heads(2)._repr_svg_())) == 17


def test_bias_shows_where_it_hides_keys():
    hidden = torch.zeros(1, 1, 1, 4)
    hidden[..., 2] = -torch.inf
    mask = LowerTriangularMask().add_bias(hidden)
    assert torch.equal(drawn(mask, (4, 4)) >= 0, mask.materialize((1, 1, 4, 4))[0, 0] == 0)
    assert drawn(mask).shape == (4, 4)


@pytest.mark.parametrize("seqlens", [[], [0]])
def test_nothing_is_drawn_as_nothing(seqlens):
    assert len(cells(BlockDiagonalMask.from_seqlens(seqlens)._repr_svg_())) == 1


def test_plot_draws_on_axes():
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    mask = BlockDiagonalMask.from_seqlens([2, 3])
    assert mask.plot(ax=axes) is axes
    image = torch.tensor(axes.images[0].get_array().tolist())
    assert torch.equal(image > 0, mask.materialize((5, 5)) == 0)
    assert axes.get_title() == "BlockDiagonalMask"


def test_plot_of_another_shape():
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    LowerTriangularMask().plot((3, 7), ax=axes)
    assert axes.images[0].get_array().shape == (3, 7)


def test_plot_without_matplotlib_says_what_to_do(monkeypatch):
    def refuse(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real_import(name, *arguments, **options)

    real_import = _drawing.importlib.import_module
    monkeypatch.setattr(_drawing.importlib, "import_module", refuse)
    with pytest.raises(ImportError, match="needs matplotlib; install it"):
        LowerTriangularMask().plot()
