"""Copies found, strangers merged, and the time for 100,000 hashes.

    python benchmarks/duplicates.py FOLDER [--files 20000] [--changed 2000]

FOLDER holds X-rays, each picture once but for true copies, which are listed as "merged" for a person to look at. At
most `--files` of them are compared with one another; fifteen copies are made of at most `--changed` of these, spread
evenly: each takes up to 0.5 MB of memory and some 50 ms.
Limits are also chosen on the films of one half of the patients, and tried on the copies of the other half's films.
"""

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from held_out import half

from cxr_ml.imaging import decode, formats, hashes
from cxr_ml.settings import Settings
from cxr_ml.validation.duplicates import bit_hashes, hash_columns, orientations, pixel_similarity, search

SETTINGS = Settings()
CROP = 0.03  # of each side, at most
# duplicate_bits, FINE_BITS, duplicate_correlation; the first of the equally good ones is chosen, the strictest
GRID = list(product((14, 16, 18, 19, 20), (242, 254, 266, 278, 290), (0.96, 0.94, 0.92, 0.9, 0.88)))
SHIPPED = (SETTINGS.validation.duplicate_bits, bit_hashes.MAX_FINE_BITS, SETTINGS.validation.duplicate_correlation)


def resized(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    factor = rng.uniform(0.5, 1.5)
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(grey, None, fx=factor, fy=factor, interpolation=way)


def jpeg(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 96))])[1], 0)


def brighter(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(grey + rng.uniform(-25.5, 25.5), 0, 255).astype(np.uint8)


def contrast(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mean = float(grey.mean())
    return np.clip(mean + (grey - mean) * rng.uniform(0.9, 1.1), 0, 255).astype(np.uint8)


def mirrored(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.ascontiguousarray(grey[:, ::-1])


def cropped(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = grey.shape
    top, bottom = (rng.uniform(0, CROP, 2) * height).astype(int)
    left, right = (rng.uniform(0, CROP, 2) * width).astype(int)
    return np.ascontiguousarray(grey[top : height - bottom, left : width - right])


def cropped_most(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = (round(CROP * side) for side in grey.shape)
    return jpeg(np.ascontiguousarray(grey[height:-height, width:-width]), rng)


def cropped_corner(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = (round(CROP * side) for side in grey.shape)
    rows, columns = (slice(size, None) if rng.random() < 0.5 else slice(None, -size) for size in (height, width))
    return jpeg(np.ascontiguousarray(grey[rows, columns]), rng)


def on_its_side(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by a quarter or a half, mirrored or not, or flipped."""
    way = rng.choice([way for way in range(8) if way not in orientations.UPRIGHT])
    return np.ascontiguousarray(orientations.turn_pictures(grey, int(way)))


def inverted(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - (on_its_side(grey, rng) if rng.random() < 0.5 else grey)


def padded(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With black, grey or white: to a square, or by up to a quarter at each side."""
    height, width = grey.shape
    across, down = ((max(height, width) - side) // 2 for side in (width, height))
    sides = np.array([down, down, across, across])
    if height == width or rng.random() < 0.5:
        sides = (rng.uniform(0, 0.25, 4) * (height, height, width, width)).astype(int)
    return cv2.copyMakeBorder(grey, *sides.tolist(), cv2.BORDER_CONSTANT, value=int(rng.choice([0, 128, 255])))


CHANGES = (cropped, mirrored, contrast, brighter, resized, jpeg)  # in this order where there are two
EDGE = (cropped_most, cropped_corner)  # the most that is asked for
TURNS = (on_its_side, inverted, padded)  # alone, and after one of CHANGES


def facts(name: str, kind: str, grey: np.ndarray) -> dict:
    small = decode.shrink(grey, decode.MEASURED_SIDE)
    square = hashes.resize_square(small, 256)
    way = cv2.INTER_AREA if min(grey.shape) >= pixel_similarity.SIDE else cv2.INTER_LINEAR
    side = (pixel_similarity.SIDE, pixel_similarity.SIDE)  # as find_duplicates() would
    inner = hashes.inner_hash(small)
    return {
        "sha256": f"{kind} {name}",
        "of": name,
        "kind": kind,
        "phash": hashes.perceptual_hash(square),
        "fine_hash": hashes.fine_hash(square),
        "inner_hash": inner,
        "grey": small if inner else cv2.resize(grey, side, interpolation=way),  # a margin is cut off before that
    }


def originals_and_copies(number: int, path: Path, changed: bool) -> list[dict]:
    """Facts of a picture and, if `changed`, of its copies; none where it cannot be read."""
    cv2.setNumThreads(1)
    try:
        pixels = decode.decode_image(path.read_bytes(), SETTINGS.images).pixels
    except formats.BadImage:
        return []
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    rng, name = np.random.default_rng([7, number]), str(path)
    if not changed:
        return [facts(name, "original", grey)]
    rows = [facts(name, "original", grey)] + [facts(name, f.__name__, f(grey, rng)) for f in (*CHANGES, *EDGE)]
    first, second = (CHANGES[i] for i in sorted(rng.choice(len(CHANGES), 2, replace=False)))
    rng_of_turns = np.random.default_rng([8, number])
    for turn in TURNS:
        change = CHANGES[rng_of_turns.integers(len(CHANGES))]
        rows.append(facts(name, turn.__name__, turn(grey, rng_of_turns)))
        rows.append(facts(name, f"{change.__name__} + {turn.__name__}", turn(change(grey, rng_of_turns), rng_of_turns)))
    return [*rows, facts(name, f"{first.__name__} + {second.__name__}", second(first(grey, rng), rng))]


def spread_evenly(total: int, wanted: int) -> np.ndarray:
    """At most `wanted` of the numbers below `total`, ascending."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).astype(int))


def found_and_merged(folder: Path, files: int, changed_files: int) -> pd.DataFrame:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    paths = [paths[place] for place in spread_evenly(len(paths), files)]
    is_changed = np.isin(np.arange(len(paths)), spread_evenly(len(paths), changed_files))
    with ProcessPoolExecutor(2) as pool:
        parts = pool.map(originals_and_copies, range(len(paths)), paths, is_changed.tolist(), chunksize=8)
        table = pd.DataFrame([row for rows in parts for row in rows])
    pictures = dict(zip(table["sha256"], table["grey"], strict=True))
    originals, changed = table[table["kind"] == "original"], table[table["kind"] != "original"]
    loads: list[str] = []

    def load(sha: str) -> np.ndarray:
        loads.append(sha)
        return pictures[sha]

    merged = search.find_duplicates(originals, originals.iloc[:0], load, SETTINGS.validation)["duplicate_of"]
    merged = merged[merged != ""]
    print(f"originals: {len(originals)}, merged with another: {len(merged)}, pictures looked at: {len(loads)}")
    same = {}
    for i, other in merged.items():
        same[originals.at[i, "of"]] = other.removeprefix("original ")
        print(f"  {originals.at[i, 'of']} = {other}")
    start, hits = time.perf_counter(), {}
    for kind, part in changed.groupby("kind"):
        answer = search.find_duplicates(part, originals, load, SETTINGS.validation)["duplicate_of"].str.removeprefix(
            "original "
        )
        own = part["of"]
        right = (answer == own) | (answer == own.map(same)) | (answer.map(same) == own)
        hits[kind] = (len(part), right.sum(), ((answer != "") & ~right).sum())
    seconds = time.perf_counter() - start
    compared = strangers(originals)
    print(f"pairs of originals to compare on pixels: {compared / len(originals):.3f} for each")
    result = pd.DataFrame(hits, index=["copies", "found", "merged with a stranger"]).T.astype(int)
    print(result.to_string())
    print(f"all: {result['found'].sum() / len(changed):.4%} of {len(changed)} found, {seconds:.1f} s")
    upright = ~changed["kind"].str.contains("|".join(f.__name__ for f in TURNS))
    held_out(changed[upright], originals[originals["of"].isin(changed["of"])], same)
    return originals


def strangers(originals: pd.DataFrame) -> int:
    """Pairs of the originals that are candidates."""
    hashes = np.array([int(h, 16) for h in originals["phash"]], np.uint64)
    fine = np.frombuffer(bytes.fromhex("".join(originals["fine_hash"])), np.uint64).reshape(-1, 16)
    inner = hash_columns.parse_inner_hashes(originals["inner_hash"])
    found = search.find_candidates(hashes, np.ascontiguousarray(fine.T), 0, SETTINGS.validation.duplicate_bits, inner)
    return sum(len(likest) for _, likest in found)


def pairs(changed: pd.DataFrame, originals: pd.DataFrame) -> pd.DataFrame:
    """Copies beside originals within the widest limits of GRID: of, other, number (of the copy), bits, apart, alike."""
    bits, fine, _ = (max(values) for values in zip(*GRID, strict=True))
    mine, other = (np.array([int(h, 16) for h in t["phash"]], np.uint64) for t in (changed, originals))
    far, near = (np.frombuffer(bytes.fromhex("".join(t["fine_hash"])), np.uint64).reshape(-1, 16) for t in
                 (changed, originals))  # fmt: skip
    found, near = [], np.ascontiguousarray(near.T)
    for way in orientations.UPRIGHT:
        for top in range(0, len(mine), 64):
            rows = slice(top, top + 64)
            differing = np.bitwise_count(orientations.turn_hashes(mine[rows], way)[:, None] ^ other)
            i, j = np.nonzero(differing <= bits)
            places, _, apart = bit_hashes.match_crops(
                orientations.turn_fine_hashes(far[rows], way)[i], near[:, j], fine
            )
            i, j = i[places], j[places]
            columns = (top + i, j, np.full(len(i), way), differing[i, j], apart)
            found += list(zip(*(column.tolist() for column in columns), strict=True))
    copy_greys, original_greys = changed["grey"].to_numpy(), originals["grey"].to_numpy()

    def alike(pair: tuple) -> float:
        i, j, way, *_ = pair
        copy, original = pixel_similarity.normalise(copy_greys[i]), pixel_similarity.normalise(original_greys[j])
        return pixel_similarity.correlate(original, orientations.turn_pictures(copy, way), np.inf)

    with ThreadPoolExecutor(2) as pool:
        table = pd.DataFrame(found, columns=["number", "place", "way", "bits", "apart"])
        table["alike"] = list(pool.map(alike, found))
    table["of"] = changed["of"].to_numpy()[table["number"]]
    return table.assign(other=originals["of"].to_numpy()[table["place"]]).sort_values("apart", kind="stable")


def merged_by(table: pd.DataFrame, limits: tuple[int, int, float]) -> pd.DataFrame:
    """The pair by which each copy is merged, as `find_duplicates` does it."""
    bits, fine, correlation = limits
    fit = (table["bits"] <= bits) & (table["apart"] <= fine) & (table["alike"] >= correlation)
    return table[fit].drop_duplicates("number")


def held_out(changed: pd.DataFrame, originals: pd.DataFrame, same: dict[str, str]) -> None:
    """Chooses limits by the copies and originals of one half, and tries them on copies of the other, all originals."""
    table = pairs(changed, originals)
    table["right"] = (table["of"] == table["other"]) | (table["of"].map(same) == table["other"])
    table["right"] |= table["other"].map(same) == table["of"]
    copies_of = changed["of"].map(half).value_counts()
    for mine in (0, 1):
        here = table[(table["of"].map(half) == mine) & (table["other"].map(half) == mine)]
        score = {}
        for limits in GRID:
            right = merged_by(here, limits)["right"]
            score[limits] = (-int((~right).sum()), int(right.sum()))
        best = max(score.values())
        equal = [limits for limits, value in score.items() if value == best]
        spans = ", ".join(f"{min(v)}-{max(v)}" for v in zip(*equal, strict=True))
        print(f"half {mine} finds most without a stranger ({best[1]} of {copies_of[mine]}, {-best[0]} merged wrongly)")
        print(f"  with phash bits, fine bits, correlation {equal[0]}; as well with {spans}")
        there = table[table["of"].map(half) != mine]
        for name, limits in (("these", equal[0]), ("the shipped", SHIPPED)):
            right, many = merged_by(there, limits)["right"], copies_of[1 - mine]
            print(f"  copies of the other half under {name} limits {limits}: {right.sum() / many:.4%} of {many} found, "
                  f"{(~right).sum()} merged with a stranger")  # fmt: skip


def scale(originals: pd.DataFrame, number: int = 100_000, flips: float = 0.12) -> None:
    """Hashes drawn like real ones: a real picture's, each bit of both hashes turned with probability `flips`."""
    rng = np.random.default_rng(0)
    real = np.array([int(h, 16) for h in originals["phash"]], np.uint64)
    fine = np.frombuffer(b"".join(map(bytes.fromhex, originals["fine_hash"])), np.uint64).reshape(-1, 16)
    which = rng.integers(0, len(real), 2 * number)
    turned_bits = np.packbits(rng.random((2 * number, 64)) < flips, axis=1).view(np.uint64).ravel()
    hashes, far = real[which] ^ turned_bits, np.empty((2 * number, 16), np.uint64)
    for top in range(0, 2 * number, 10_000):
        noise = np.packbits(rng.random((10_000, 1024)) < 0.2, axis=1).view(np.uint64)
        far[top : top + 10_000] = fine[which[top : top + 10_000]] ^ noise
    far = np.ascontiguousarray(far.T)
    inner = hash_columns.parse_inner_hashes(originals["inner_hash"])
    of = np.flatnonzero(np.isin(which, inner.of))
    mine = np.searchsorted(inner.of, which[of])
    inner = hash_columns.InnerHashes(
        of, inner.hashes[mine] ^ turned_bits[of], inner.fine[:, mine] ^ far[:, of] ^ fine[which[of]].T
    )
    del turned_bits
    start, cpu, asked = time.perf_counter(), time.process_time(), 0
    # The 100,000 known, then 100,000 new: the new ones are also compared with one another.
    for _, pairs in search.find_candidates(hashes, far, number, SETTINGS.validation.duplicate_bits, inner):
        asked += len(pairs)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    pairs = number * number + number * (number - 1) / 2
    print(
        f"{number:,} against {number:,} and against one another, mirrored too: {wall:.1f} s wall, {cpu:.1f} s CPU, "
        f"so {wall * number * number / pairs:.1f} s for {number:,} against {number:,} alone, "
        f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, {asked / number:.2f} candidates each"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=20_000, help="pictures of the folder that are compared")
    parser.add_argument("--changed", type=int, default=2_000, help="pictures of which copies are made")
    arguments = parser.parse_args()
    scale(found_and_merged(arguments.folder, arguments.files, arguments.changed))
