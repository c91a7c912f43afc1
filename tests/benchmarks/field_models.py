# SPDX-License-Identifier: Apache-2.0
"""Draws of the registry of field models by a guide and ``sample``, against stored answers.

    python -m tests.benchmarks.field_models [--seeds 0 1 2] [--models Cox probit] [--by svi fit]
    python -m tests.benchmarks.field_models --answers [--models probit] [--draws 500]

A guide with its defaults is trained by plain SVI (800 steps of Adam at 1e-2, 16 particles) or by
``fit`` with its defaults; ``sample(model, guide)`` then draws with its own. A line for each: the
method that it chose, the worst R-hat; z of the globals' means, the largest, and of the fields' the
root mean square and the largest, all in errors of the draws and of the answer together; z of
``evidence(model, guide)``; CPU seconds of guide and training, and of the draws. Bars: every global
within 4, the mean of the fields' squared z over all runs at most 1.3, of no run the root above 2.5,
the largest below Bonferroni's bound of 1 %, R-hat below 1.01 and the evidence within 3.

With ``--answers`` the answers are computed anew (:mod:`tests.models.answers`).
"""

from __future__ import annotations

import logging
import math
import statistics
import time
import warnings
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pyro

from pyro_neuralrg import AutoHierarchicalFlow, evidence, fit
from pyro_neuralrg import sample as draw
from pyro_neuralrg.statistics import summarise_field
from tests.benchmarks.guides import make_svi, run_steps
from tests.benchmarks.harness import Table, parse, timed
from tests.models.answers import Answer, compute_answer, keep_answer, load_answers
from tests.models.registry import REGISTRY, FieldModel

MAX_GLOBAL_Z, MAX_MEAN_SQUARE, MAX_RMS, MAX_RHAT, MAX_EVIDENCE_Z = 4.0, 1.3, 2.5, 1.01, 3.0
CHANCE = 0.01
COLUMNS = {
    "R-hat": "9.4f",
    "global": "8.2f",
    "field": "7.2f",
    "largest": "9.2f",
    "evidence": "10.2f",
    "guide": "8.1f",
    "draws": "8.1f",
}


class Found(NamedTuple):
    """What a run says, in the errors of draws and answer together.

    Attributes:
        method: that ``sample`` chose, with its reason, and that of ``evidence``.
        rhat: the worst of all sites; 1 of weighted draws, which have none.
        global_z: the largest of the globals' means.
        field_z: of the fields' means, all of them.
        evidence_z: of ln Z.
        seconds: CPU time of guide and training, and of the draws.
    """

    method: str
    rhat: float
    global_z: float
    field_z: np.ndarray
    evidence_z: float
    seconds: tuple[float, float]

    @property
    def rms(self) -> float:
        """Root mean square of the fields' z."""
        return float(np.sqrt(np.mean(self.field_z**2)))


def trained(model: Any, by: str, seed: int) -> AutoHierarchicalFlow:
    """A guide with its defaults, trained."""
    guide = AutoHierarchicalFlow(model)
    if by == "svi":
        run_steps(make_svi(model, guide))
    else:
        fit(model, guide, seed=seed, progress=False)
    return guide


def compare(draws: Any, entry: FieldModel, answer: Answer) -> tuple[float, float, np.ndarray]:
    """Worst R-hat, the largest z of the globals, and all z of the fields."""
    rhat, z = 1.0, {}
    for name, x in draws.get_samples(group_by_chain=draws.log_weights is None).items():
        if draws.log_weights is None:
            figures = summarise_field(x.double(), x[0, 0].numel()).figures
            mean, error = figures["mean"], figures["mcse"]
            rhat = float(np.maximum(rhat, figures["rhat"].max()))
        else:
            mean, error = (np.asarray(part).reshape(-1) for part in draws.mean(x.double()))
        z[name] = (mean - answer.means[name]) / np.hypot(error, answer.errors[name])
    worst = max(float(np.abs(values).max()) for x, values in z.items() if x not in entry.fields)
    return rhat, worst, np.concatenate([z[name] for name in entry.fields])


def run(name: str, by: str, seed: int, answer: Answer) -> Found:
    """One model, one training, one call of ``sample``."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    entry = REGISTRY[name]
    model = entry.build(0)
    guide, of_guide = timed(lambda: trained(model, by, seed))
    draws, of_draws = timed(lambda: draw(model, guide, seed=seed, progress=False))
    rhat, global_z, field_z = compare(draws, entry, answer)
    log_z = evidence(model, guide, seed=seed, progress=False)
    right, its_error = answer.log_evidence
    evidence_z = (log_z.value - right) / math.hypot(log_z.standard_error, its_error)
    method = f"{draws.method}: {draws.reason}; ln Z by {log_z.method}"
    return Found(method, rhat, global_z, field_z, evidence_z, (of_guide, of_draws))


def failures(runs: dict[str, Found], most_of_evidence: float = MAX_EVIDENCE_Z) -> list[str]:
    """The bars that are not reached; that of the evidence's z may be another one."""
    said = []
    for name, found in runs.items():
        for what, value, most in (
            ("z of a global", found.global_z, MAX_GLOBAL_Z),
            ("root mean square z of the field", found.rms, MAX_RMS),
            ("R-hat", found.rhat, MAX_RHAT),
            ("z of the evidence", abs(found.evidence_z), most_of_evidence),
        ):
            if not value <= most:
                said.append(f"{name}: {what} {value:.4g}, at most {most}")
        if not (np.isfinite(found.field_z).all() and math.isfinite(found.global_z)):
            said.append(f"{name}: NaN")
    z = np.concatenate([found.field_z for found in runs.values()])
    most = statistics.NormalDist().inv_cdf(1 - CHANCE / (2 * len(z)))
    square = statistics.mean(found.rms**2 for found in runs.values())
    for what, value, bar in (
        ("mean square z of the fields", square, MAX_MEAN_SQUARE),
        ("largest z of a field", float(np.abs(z).max()), most),
    ):
        print(f"{what}: {value:.3f}, at most {bar:.3f}")
        if not value <= bar:
            said.append(f"{what} {value:.4g}, at most {bar:.4g}")
    return said


def main() -> None:
    arguments = parse(
        __doc__,
        seeds=[0],
        models=([""], "parts of names; default: all"),
        by=["svi", "fit"],
        answers=False,
        draws=(500, "of each of the chains of an answer"),
        particles=(512, "of its evidence"),
        threads=1,
    )
    logging.disable(logging.INFO)  # Pyro's guesses of plates
    warnings.simplefilter("ignore")
    chosen = [name for name in REGISTRY if any(part in name for part in arguments.models)]
    if arguments.answers:
        for name in chosen:
            began = time.process_time()
            answer = compute_answer(name, arguments.draws, arguments.particles)
            keep_answer(name, answer)
            log_z = "{:.4f} +- {:.4f}".format(*answer.log_evidence)
            print(f"{name}: {answer.provenance}; ln Z {log_z}; {time.process_time() - began:.0f} s")
        return
    answers, runs = load_answers(), {}
    unknown = [name for name in chosen if name not in answers]
    if unknown:
        print(f"no answers yet, see --answers: {', '.join(unknown)}")
        chosen = [name for name in chosen if name in answers]
    table = Table(36, COLUMNS, "model, training, seed")
    for name, seed, by in product(chosen, arguments.seeds, arguments.by):
        found = run(name, by, seed, answers[name])
        runs[f"{name}, {by}, {seed}"] = found
        largest = float(np.abs(found.field_z).max())
        figures = (found.rhat, found.global_z, found.rms, largest, found.evidence_z)
        table.row(f"{name}, {by}, {seed}", *figures, *found.seconds, note=found.method)
    print("\n".join(failures(runs)) or "all bars reached")


if __name__ == "__main__":
    main()
