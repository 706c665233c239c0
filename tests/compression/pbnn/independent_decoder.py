"""Decode float32 networks of common layers from .pbnn files; the numbers cite FORMAT.md."""

import zlib
from bisect import bisect_left
from itertools import accumulate
from math import isqrt, prod

import numpy as np

LIKELY = [[6, 4, 7, 0, 3], [1, 2], [0, 5, 4, 6], [], [0], [1, 8], [4, 6], [3, 0], [4, 3]]  # 6
ONE = 1 << 96  # 4.1
TERMS = accumulate(range(1, 99), lambda term, k: term // (256 * k), initial=ONE)
POWERS = list(accumulate([sum(TERMS)] * 2048, lambda a, b: a * b >> 96, initial=ONE))
SQUASH = [(ONE << 16) // (ONE + power) for power in POWERS[:0:-1]]
SQUASH += [(power << 16) // (ONE + power) for power in POWERS[:-1]]
STRETCH = [bisect_left(SQUASH, 16 * k + 8, hi=4095) - 2048 for k in range(4096)]


class Mixer:  # 4.2
    def __init__(self, decoder, weight, rate, trust):
        self.decoder, self.weight, self.rate, self.trust = decoder, weight, rate, trust
        self.estimates, self.weights = {}, {}

    def bit(self, contexts, weight_set=0):
        start = self.estimates.setdefault(contexts[0], [1 << 21, 2])[0]
        estimates = [self.estimates.setdefault(c, [start, 2 + self.trust]) for c in contexts]
        base = STRETCH[start >> 10]
        x = [base, *[STRETCH[frequency >> 10] - base for frequency, _ in estimates[1:]]]
        w = self.weights.setdefault(weight_set, [65536] + [self.weight] * (len(x) - 1))
        total = sum(a * b for a, b in zip(w, x, strict=True)) + 32768 >> 16
        p = SQUASH[min(max(total, -2048), 2047) + 2048]
        bit = self.decoder.bit(p)
        error = (65536 * bit - p) * self.rate
        w[:] = [a + (error * b + (1 << 19) >> 20) for a, b in zip(w, x, strict=True)]
        target = (1 << 22) - 1024 if bit else 1024
        for estimate in estimates:
            estimate[0] += (target - estimate[0]) // estimate[1]
            estimate[1] = min(estimate[1] + 1, 1000)
        return bit


class Images:  # the arrays of 8.7; without images, all points are one and are not used
    def __init__(self, columns, image):
        self.exist, height, width = image != (0, 0), max(1, image[0]), max(1, image[1])
        stride, plane = width + 8, (height + 8) * (width + 8)
        number, point = np.divmod(np.array(columns) * self.exist, height * width)
        points = number * plane + (point // width + 4) * stride + point % width + 4
        self.points, self.size, self.stride = points.tolist(), plane * (max(number) + 1), stride
        offsets = [(x, y) for y in range(-4, 5) for x in range(-4, 5) if (x, y) != (0, 0)]
        self.around = [(y * stride + x, isqrt(256 // (x * x + y * y)) + 1 >> 1) for x, y in offsets]


def coarse(v, d=1):  # 8.7
    n = v.bit_length()
    return v if n <= d else (n << d) + (v >> (n - 1 - d)) % (1 << d)


class Decoder:
    def __init__(self, data):
        assert (data[:3], zlib.crc32(data[:-4]).to_bytes(4, "little")) == (b"PB\1", data[-4:])  # 2
        self.body, self.range, self.read = data[3:-4], 1 << 40, 5
        self.value = int.from_bytes(self.body[:5].ljust(5, b"\0"), "big")
        self.integers, self.codebooks, self.image = Mixer(self, 0, 0, 0), [], (0, 0)
        self.layers, self.selections, code, width, columns = [], [], -1, None, None
        while code != 2:  # 6
            ranked = list(dict.fromkeys((*LIKELY[code + 1], *range(25))))
            code = ranked[self.number(("operation", code))]
            assert self.number("back") == 0
            if code in (0, 4):
                width, columns = self.layer(code, width, columns), None
            if code == 3:  # 8.6
                image = self.image_size() if self.number("indices") == 2 else None
                columns = self.mask(1, range((1 + self.number("rows")) * max(1, image[1])), image)
                self.selections.append(columns)
                width = len(columns)
            if code in (5, 7):
                steps = [self.number("integer", True) for _ in range(self.number("length"))]
            if code in (6, 7):
                width, columns = sum(steps[:2]) if code == 7 else None, None
            assert code < 5 or code == 7 or self.number("unusual") == 0

    def narrow(self, low, size, result):  # 3.1
        self.value, self.range = self.value - low, size
        while self.range < 1 << 32:
            self.value = self.value * 256 + int.from_bytes(self.body[self.read : self.read + 1])
            self.range, self.read = self.range * 256, self.read + 1
        return result

    def bit(self, p):
        b = (self.range >> 16) * p
        return self.narrow(0, b, 1) if self.value < b else self.narrow(b, self.range - b, 0)

    def bits(self, n):
        if n > 16:
            return (self.bits(16) << n - 16) + self.bits(n - 16)
        size = self.range >> max(n, 0)
        return self.narrow(self.value // size * size, size, self.value // size)

    def number(self, kind, signed=False):  # 5
        length, r = 0, 1
        while self.integers.bit([(kind, length)]):
            length += 1
        for _ in range(min(length, 2)):
            r = 2 * r + self.integers.bit([(kind, length, r)])
        n = (r << max(0, length - 2)) + self.bits(length - 2) - 1
        return (n + n % 2) // 2 * (-1) ** n if signed else n

    def layer(self, code, width, columns):  # 7
        assert not self.layers or self.number("again") == 0
        assert self.number("type") == 0
        if width is None or self.number("other width"):
            width = self.number("width")
        shape = [self.number("width"), width]
        if code == 4:
            height = self.number("kernel")
            shape += [height, height + self.number("kernel step", True)]
            assert self.number("options") == 0
            self.image = tuple(shape[2:]) if prod(shape[2:]) > 1 else self.image
        if code == 4 or columns is None or len(columns) != width:
            columns = range(prod(shape[1:]))
        no_bias = self.number("no bias")
        weight = self.tensor(shape[0], columns, "weight").reshape(shape)
        bias = None if no_bias else self.tensor(1, range(shape[0]), "bias of units")
        self.layers.append((weight, bias))
        return shape[0]

    def tensor(self, rows, columns, role):  # 8.1 to 8.4
        patterns = np.zeros(rows * len(columns), "<u4")
        is_mask = {0: False, 2: True}[self.number(("positions", role))]
        image = self.image_size() if is_mask else (0, 0)
        positions = self.mask(rows, columns, image) if is_mask else range(len(patterns))
        assert self.number(("values", role)) == 0
        back = self.number("codebook") if self.codebooks else 0
        if back == 0:
            count, fixed = self.number("levels"), self.number("fixed")
            scale, lowest = self.number(("scale", fixed)), self.number("lowest", True)
            steps = [1 + self.number(("level", fixed)) for _ in range(count)]
            levels = list(accumulate(steps, initial=lowest))
            book = [i << scale if i >= 0 else (1 << 31) + (-1 - i << scale) for i in levels]
            if fixed:
                book = np.float32(np.array(levels) * 2.0**-scale).view("<u4").tolist()
            self.codebooks.append(book)
        book = self.codebooks[-max(back, 1)]
        if len(book) > 1 and self.bit(16384):
            indices = np.cumsum([self.number("step") for _ in positions])
        else:
            negative = sum(pattern >= 1 << 31 for pattern in book)
            indices = self.halved(positions, columns, image, len(book), negative)
        patterns[positions] = np.array(book, "<u4")[indices]
        return patterns.view("<f4")

    def image_size(self):  # 8.5
        choice = self.number("image")
        if choice == 2:
            height = 1 + self.number("height")
            self.image = (height, height + self.number("width", True))
        return self.image if choice else (0, 0)

    def mask(self, rows, columns, image):  # 8.7; the flat indices of the ones
        mixer, images, bits = Mixer(self, 10000, 20, 8), Images(columns, image), []
        s, density, above = images.stride, [0] * images.size, [0] * len(columns)
        for i, j in np.ndindex(rows, len(columns)):
            if j == 0:
                seen, near, left = [0] * images.size, [0] * images.size, 0
            a, b, t = coarse(above[j]), coarse(left), 8 * i // rows
            contexts = [0, (1, a, t), (2, b, 8 * j // len(columns)), (3, i), (4, b, a, t >> 1)]
            p, q = images.points[j], images.points[j] - s  # q is the point above p
            if images.exist:
                f = (seen[p - 1], seen[q], seen[q - 1], seen[q + 1])
                ring = sum(seen[q - s - 2 : q - s + 3]) + seen[q - 2] + seen[q + 2] + seen[p - 2]
                contexts += [(5, f[0] + 2 * f[1] + 4 * f[2] + 8 * f[3]), (6, sum(f), min(ring, 3))]
                contexts += [(7, coarse(near[p], 2)), (8, coarse(8 * density[p] // (i + 1), 2))]
                contexts += [(9, b, coarse(near[p]))]
            bits.append(mixer.bit(contexts))
            if bits[-1]:
                seen[p], density[p], left, above[j] = 1, density[p] + 24, left + 1, above[j] + 1
                for offset, weight in images.around:
                    density[p + offset] += weight
                    near[p + offset] += weight * (offset > 0)
        return np.flatnonzero(bits).tolist()

    def halved(self, positions, columns, image, size, negative):  # 8.8
        mixer, images, result, row = Mixer(self, 12000, 200, 2), Images(columns, image), [-1], -1
        for i, j in (divmod(position, len(columns)) for position in positions):
            if i != row:
                row, near, touching = i, [0] * images.size, [0] * images.size
            low, high, p = 0, size, images.points[j]
            split = negative if 0 < negative < size else size // 2
            while high - low > 1:
                contexts = [(low, high), ((low, high), 1, result[-1]), ((low, high), 2, i)]
                if images.exist:
                    contexts += [((low, high), 3, touching[p]), ((low, high), 4, near[p] >> 1)]
                low, high = (split, high) if mixer.bit(contexts, (low, high)) else (low, split)
                split = (low + high) // 2
            result.append(low)
            for offset, weight in images.around:
                sign = (offset > 0) * (-1 if low < negative else 1)
                near[p + offset] += sign * weight
                touching[p + offset] += sign * (weight >= 6)
        return result[1:]
