"""How much of packed chat rows is padding: `python -m benchmarks.padding --length 2048 STORE …`."""

import argparse

from t_elaine.data.loader import open_mixture
from t_elaine.data.mixture import Mixture


def main() -> None:
    """A line a store, and one of all, each weighted by its rows of an epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--overlong", choices=("drop", "truncate"), default="drop")
    given = parser.parse_args()
    mixture = Mixture(
        stores=given.stores,
        sequence_length=given.length,
        batch_tokens=given.length,
        packing="whole",
        overlong=given.overlong,
    )
    tokens = places = 0.0
    print(f"{'store':24} {'rows':>7} {'padding':>8} {'dropped':>8} {'truncated':>10}")
    for source in open_mixture(mixture).sources:
        rows = source.rows
        room = rows.rows_per_epoch * (given.length + 1)
        tokens, places = tokens + rows.tokens, places + room
        share = f"{1 - rows.tokens / room:.2%}" if room else "–"
        print(f"{source.name:24} {rows.rows_per_epoch:7.0f} {share:>8} {rows.dropped:8} {rows.truncated:10}")
    print(f"{'all':24} {places / (given.length + 1):7.0f} {1 - tokens / places:8.2%}")


if __name__ == "__main__":
    main()
