"""The kernels of `fused`. A program has a tile (ROWS pixels, COLUMNS channels) of one image, at (image, piece, block).

Imported where they run: Triton is not everywhere that torch is.
"""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _tile(pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets into the tensor (N, pixels, channels), what of them is inside, and the channels and which of them are."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < pixels) & (columns[None, :] < channels)
    start = tl.program_id(0).to(tl.int64) * pixels * channels
    return start + rows[:, None] * channels + columns[None, :], inside, columns, columns < channels


@triton.jit
def _moments(x, mean, m2, pixels, channels, pieces, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    offsets, inside, columns, valid = _tile(pixels, channels, ROWS, COLUMNS)
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(ROWS, pixels - tl.program_id(1) * ROWS).to(tl.float32)
    center = tl.sum(values, 0) / count
    off_center = tl.where(
        inside, values - center[None, :], 0.0
    )  # in two passes over registers: nothing cancels
    place = (tl.program_id(0).to(tl.int64) * pieces + tl.program_id(1)) * channels + columns
    tl.store(mean + place, center, mask=valid)
    tl.store(m2 + place, tl.sum(off_center * off_center, 0), mask=valid)


@triton.jit
def _lines(
    first, images, pixels, channels, pieces, table_rows, columns, LINES: tl.constexpr, ROWS: tl.constexpr
):
    """Of the pieces that belong to this program's row of the table, LINES from `first` on: offsets of their channels
    in a tensor (N, pieces, channels), which of them there are, and their pixels."""
    line = first + tl.arange(0, LINES)
    piece = line % pieces
    image = tl.program_id(0) + (line // pieces) * table_rows
    offsets = (image.to(tl.int64) * pieces + piece)[:, None] * channels + columns[None, :]
    return offsets, image < images, tl.minimum(ROWS, pixels - piece * ROWS).to(tl.float32)


@triton.jit
def _merged(
    mean, m2, centers, rstds, variances, images, pixels, channels, pieces, table_rows, width, eps,
    JOINT: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Statistics of a row of the table: of each channel, or (JOINT) of `width` neighbouring channels together."""
    columns = tl.program_id(1) * width + tl.arange(0, COLUMNS)
    valid = (tl.arange(0, COLUMNS) < width) & (columns < channels)
    lines = images // table_rows * pieces
    values = (images // table_rows * pixels).to(tl.float32)
    sums = tl.zeros([LINES, COLUMNS], tl.float32)
    for first in range(0, lines, LINES):
        offsets, there, count = _lines(
            first, images, pixels, channels, pieces, table_rows, columns, LINES, ROWS
        )
        sums += tl.load(mean + offsets, mask=there[:, None] & valid[None, :], other=0.0) * count[:, None]
    center = tl.sum(sums, 0) / values
    if JOINT:
        center = tl.sum(center, 0) / width + tl.zeros([COLUMNS], tl.float32)
    spread = tl.zeros([LINES, COLUMNS], tl.float32)
    for first in range(0, lines, LINES):
        offsets, there, count = _lines(
            first, images, pixels, channels, pieces, table_rows, columns, LINES, ROWS
        )
        inside = there[:, None] & valid[None, :]
        off_center = tl.load(mean + offsets, mask=inside, other=0.0) - center[None, :]
        within = tl.load(m2 + offsets, mask=inside, other=0.0)
        spread += tl.where(inside, within + count[:, None] * off_center * off_center, 0.0)
    variance = tl.sum(spread, 0) / values
    if JOINT:
        variance = tl.sum(variance, 0) / width + tl.zeros([COLUMNS], tl.float32)
    place = tl.program_id(0) * channels + columns
    tl.store(centers + place, center, mask=valid)
    tl.store(rstds + place, 1.0 / tl.sqrt(variance + eps), mask=valid)
    tl.store(variances + place, variance, mask=valid)


@triton.jit
def _coefficients(
    of_dy, of_both, weight, rstds, sums, shifts, slopes, images, pixels, channels, pieces, table_rows, width,
    JOINT: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`sums` (2, table_rows, channels) of dy and dy * xhat, and with them what the statistics add to dx."""
    columns = tl.program_id(1) * width + tl.arange(0, COLUMNS)
    valid = (tl.arange(0, COLUMNS) < width) & (columns < channels)
    lines = images // table_rows * pieces
    values = (images // table_rows * pixels).to(tl.float32)
    first_sums = tl.zeros([LINES, COLUMNS], tl.float32)
    second_sums = tl.zeros([LINES, COLUMNS], tl.float32)
    for first in range(0, lines, LINES):
        offsets, there, _ = _lines(first, images, pixels, channels, pieces, table_rows, columns, LINES, ROWS)
        inside = there[:, None] & valid[None, :]
        first_sums += tl.load(of_dy + offsets, mask=inside, other=0.0)
        second_sums += tl.load(of_both + offsets, mask=inside, other=0.0)
    place = tl.program_id(0) * channels + columns
    rstd = tl.load(rstds + place, mask=valid, other=0.0)
    gamma = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    dy = tl.sum(first_sums, 0)
    both = tl.sum(second_sums, 0) * rstd
    tl.store(sums + place, dy, mask=valid)
    tl.store(sums + table_rows * channels + place, both, mask=valid)
    shift = dy * gamma / values
    slope = both * gamma / values
    if JOINT:
        shift = tl.sum(shift, 0) / width + tl.zeros([COLUMNS], tl.float32)
        slope = tl.sum(slope, 0) / width + tl.zeros([COLUMNS], tl.float32)
    tl.store(shifts + place, shift * rstd, mask=valid)
    tl.store(slopes + place, slope * rstd * rstd, mask=valid)


@triton.jit
def _scaled(
    x, y, mean, rstd, weight, bias, pixels, channels, table_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    offsets, inside, columns, valid = _tile(pixels, channels, ROWS, COLUMNS)
    place = (tl.program_id(0) % table_rows) * channels + columns
    center = tl.load(mean + place, mask=valid, other=0.0)
    gamma = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    factor = tl.load(rstd + place, mask=valid, other=0.0) * gamma
    shift = tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    result = (values - center[None, :]) * factor[None, :] + shift[None, :]
    tl.store(y + offsets, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _products(
    x,
    dy,
    mean,
    of_dy,
    of_both,
    pixels,
    channels,
    pieces,
    table_rows,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    offsets, inside, columns, valid = _tile(pixels, channels, ROWS, COLUMNS)
    center = tl.load(mean + (tl.program_id(0) % table_rows) * channels + columns, mask=valid, other=0.0)
    gradient = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    place = (tl.program_id(0).to(tl.int64) * pieces + tl.program_id(1)) * channels + columns
    tl.store(of_dy + place, tl.sum(gradient, 0), mask=valid)
    tl.store(of_both + place, tl.sum(gradient * (values - center[None, :]), 0), mask=valid)


@triton.jit
def _gradient(
    x,
    dy,
    dx,
    mean,
    rstd,
    weight,
    shift,
    slope,
    pixels,
    channels,
    table_rows,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    offsets, inside, columns, valid = _tile(pixels, channels, ROWS, COLUMNS)
    place = (tl.program_id(0) % table_rows) * channels + columns
    center = tl.load(mean + place, mask=valid, other=0.0)
    gamma = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    factor = tl.load(rstd + place, mask=valid, other=0.0) * gamma
    constant = tl.load(shift + place, mask=valid, other=0.0)
    linear = tl.load(slope + place, mask=valid, other=0.0)
    gradient = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    result = gradient * factor[None, :] - constant[None, :] - (values - center[None, :]) * linear[None, :]
    tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=inside)
