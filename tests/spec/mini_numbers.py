"""The numbers of spec/hello-1.md a second time: random words, probes, seeded weights, views.

Plain Python integers and floats, one value at a time, written from sections 11 to 13 and the
appendix alone. Slow, and that is all it has to be.
"""

import math
from fractions import Fraction
from itertools import permutations

MASK = (1 << 64) - 1
ONE = 65536


def word(seed, epoch, stream, index, j):
    c0, c1, c2, c3 = j // 4, 0, 0, index
    k0, k1 = seed, (epoch << 32) + stream
    for _ in range(10):
        p, q = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (q >> 64) ^ c1 ^ k0, q & MASK, (p >> 64) ^ c3 ^ k1, p & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return (c0, c1, c2, c3)[j % 4]


def uniform(w):
    return (w >> 11) * 2.0**-53


def below(w, n):
    return (w * n) >> 64


def probe(p, size):
    """Rows of pixels of [r, g, b]."""
    cell = -(-2 * size // 8)
    side = 8 * cell

    def value(y, x, c):
        colour = word(0, 0, 6, p, ((y // cell) * 8 + x // cell) * 3 + c) >> 56
        noise = (word(0, 0, 6, p, 192 + (y * side + x) * 3 + c) >> 59) - 16
        return min(255, max(0, colour + noise))

    return [[[value(y, x, c) for c in range(3)] for x in range(side)] for y in range(side)]


def picture(row, height, width):
    """Picture of a row of the vectors of views."""

    def value(y, x, c):
        return word(0, 0, 3, row, (y * width + x) * 3 + c) >> 56

    return [[[value(y, x, c) for c in range(3)] for x in range(width)] for y in range(height)]


def seeded(seed, number, name, shape, at=None):
    """Elements ``at`` (by default all) of one tensor by rule uniform-1, as doubles."""
    last, at = name.split(".")[-1], range(math.prod(shape)) if at is None else at
    if len(shape) >= 2 or last in ("class_embedding", "positional_embedding"):
        bound = math.sqrt(3 / (math.prod(shape[1:]) if len(shape) >= 2 else shape[0]))
        return [(2 * uniform(word(seed, 0, 5, number, j)) - 1) * bound for j in at]
    return [1.0 if last in ("weight", "running_var") else 0.0] * len(at)


HIGH, LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")


def exp(x):
    x = max(x, -700.0)
    k = round(x * float.fromhex("0x1.71547652b82fep+0"))
    r = (x - k * HIGH) - k * LOW
    e = 1.0
    for n in range(14, 0, -1):
        e = 1.0 + r * e / n
    return math.ldexp(e, k)


def ln(x):
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m, e = 2 * m, e - 1
    s = (m - 1) / (m + 1)
    q, t = s * s, 1 / 23
    for n in range(10, -1, -1):
        t = 1 / (2 * n + 1) + q * t
    return e * HIGH + (2 * s * t + e * LOW)


def beta_quantile(u, a):
    if a == 1.0:
        return u
    c = [1.0]
    while c[-1] * 0.5 ** (len(c) - 1) > 2.0**-60 * sum(v * 0.5**i for i, v in enumerate(c)):
        i = len(c) - 1
        c.append(c[-1] * ((2 * a + i) / (a + i + 1)))

    def series(x):
        total = c[-1]
        for v in reversed(c[:-1]):
            total = v + x * total
        return total

    at_half = 2 * a * ln(0.5) + ln(series(0.5))
    goal, low, step = 2 * min(u, 1 - u), 0.0, 0.5
    for _ in range(40):
        step /= 2
        x = low + step
        if exp(a * (ln(x) + ln(1 - x)) + ln(series(x)) - at_half) < goal:
            low = x
    x = low + step / 2
    return 1 - x if u > 0.5 else x


def rounded(x):
    """Half to even, from the exact value of the double."""
    return round(Fraction(x))


class Views:
    """``views`` of a manifest, with the words of one seed."""

    def __init__(self, views, seed, sizes):
        self.v, self.seed, self.sizes = views, seed, sizes

    def u(self, epoch, row, stream, j):
        return uniform(word(self.seed, epoch, stream, row, j))

    def n(self, epoch, row, stream, j, m):
        return below(word(self.seed, epoch, stream, row, j), m)

    def crop(self, epoch, row):
        """row, top, left, height, width, flip."""
        v, (height, width) = self.v, self.sizes[row]
        low, high = map(float, v["crop_scale"])
        r0, r1 = map(float, v["crop_ratio"])
        flip = int(self.u(epoch, row, 2, 0) < float(v["flip"]))
        for t in range(10):
            area = height * width * (low + self.u(epoch, row, 2, 4 + 2 * t) * (high - low))
            ratio = exp(ln(r0) + self.u(epoch, row, 2, 5 + 2 * t) * (ln(r1) - ln(r0)))
            w, h = rounded(math.sqrt(area * ratio)), rounded(math.sqrt(area / ratio))
            if 1 <= w <= width and 1 <= h <= height:
                top = self.n(epoch, row, 2, 1, height - h + 1)
                return [row, top, self.n(epoch, row, 2, 2, width - w + 1), h, w, flip]
        h, w = height, width
        if width / height < r0:
            h = min(max(rounded(width / r0), 1), height)
        if width / height > r1:
            w = min(max(rounded(height * r1), 1), width)
        return [row, (height - h) // 2, (width - w) // 2, h, w, flip]

    def row(self, epoch, row):
        """The view as the 20 numbers of a row of the view table."""
        v, size, own = self.v, self.v["size"], self.crop(epoch, row)
        partner, box, weight = own, [0, 0, 0, 0], ONE
        if v["mix"] != "none" and self.u(epoch, row, 4, 0) < float(v["mix_probability"]):
            other = self.n(epoch, row, 4, 1, len(self.sizes))
            share = beta_quantile(self.u(epoch, row, 4, 2), float(v["mix_alpha"]))
            if other != row and v["mix"] == "mixup":
                weight = rounded(ONE * share)
            elif other != row:
                half = math.floor(0.5 * math.sqrt(1 - share) * size)
                y, x = self.n(epoch, row, 4, 3, size), self.n(epoch, row, 4, 4, size)
                ends = [y - half, x - half, y + half, x + half] if half else box
                box = [min(max(e, 0), size) for e in ends]
            if weight < ONE or box[2] > box[0]:
                partner = self.crop(epoch, other)
        factor = v["shuffle"]
        number = self.n(epoch, row, 2, 3, math.factorial(factor) ** 2) if factor > 1 else 0
        return [*own, *partner, *box, weight, factor, number, 0]

    def view(self, epoch, row, pictures):
        """The pixels [3][S][S] of a view, from rows of [r, g, b] of each picture."""
        numbers = self.row(epoch, row)
        box, weight, factor, number = numbers[12:16], numbers[16], *numbers[17:19]

        def part(row, top, left, height, width, flip):
            lines = pictures[row] if factor < 2 else shuffled(pictures[row], factor, number)
            lines = [line[left : left + width] for line in lines[top : top + height]]
            return resized(lines, self.v, flip)

        own = part(*numbers[:6])
        other = own if numbers[:6] == numbers[6:12] else part(*numbers[6:12])

        def value(c, y, x):
            a, b = own[c][y][x], other[c][y][x]
            is_inside = box[0] <= y < box[2] and box[1] <= x < box[3]
            mixed = b if is_inside else weight / ONE * a + (1 - weight / ONE) * b
            return min(1.0, max(0.0, mixed))

        side = range(self.v["size"])
        return [[[value(c, y, x) for x in side] for y in side] for c in range(3)]

    def hard_label(self, epoch, row, labels, classes):
        numbers, out = self.row(epoch, row), [0.0] * classes
        y0, x0, y1, x1, weight = numbers[12:17]
        share = (y1 - y0) * (x1 - x0) / self.v["size"] ** 2 if y1 > y0 else 1 - weight / ONE
        out[labels[row]] += 1 - share
        out[labels[numbers[6]]] += share
        return out

    def order(self, epoch):
        return sorted(
            range(len(self.sizes)), key=lambda row: (word(self.seed, epoch, 1, 0, row), row)
        )


def taps(n, views):
    """For each output the (pixel, weight) pairs that it sums."""
    size, kind, wide = views["size"], views["interpolation"], views.get("antialias")
    if kind == "nearest":
        return [[((2 * i + 1) * n // (2 * size), 1.0)] for i in range(size)]
    m, a = (max(n, size), -0.5) if wide else (size, -0.75)

    def k(x):
        if kind == "bilinear":
            return max(0.0, 1 - x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    around = range(n) if wide or kind == "bilinear" else range(-2, n + 2)
    out = []
    for i in range(size):
        pairs = [(j, k(abs((2 * j + 1) * size - (2 * i + 1) * n) / (2 * m))) for j in around]
        total = sum(w for _, w in pairs)
        out.append([(min(max(j, 0), n - 1), w / total) for j, w in pairs if w])
    return out


def resized(lines, views, flip):
    """[3][S][S] from rows of [r, g, b] bytes."""
    across, down = taps(len(lines[0]), views), taps(len(lines), views)
    across = across[::-1] if flip else across
    rows = [
        [[sum(w * line[j][c] / 255 for j, w in pairs) for pairs in across] for c in range(3)]
        for line in lines
    ]
    side = range(views["size"])
    return [
        [[sum(w * rows[j][c][x] for j, w in pairs) for x in side] for pairs in down]
        for c in range(3)
    ]


def shuffled(image, factor, number):
    """The rows of ``image`` (a list of lists) after the patch shuffle."""
    orders = list(permutations(range(factor)))
    column_rank, row_rank = divmod(number, len(orders))

    def moved(lines, order):
        cell = len(lines) // factor
        kept = [line for k in order for line in lines[k * cell : (k + 1) * cell]]
        return kept + lines[factor * cell :]

    image = [moved(list(line), orders[column_rank]) for line in image]
    return moved(image, orders[row_rank])
