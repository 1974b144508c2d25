"""Parts, resume, commit: what a run leaves on disk, and when. This text is the contract.

OUT that does not end in ``.parquet`` is a growing dataset: dataset.py has its contract. Else the result is two files:
``OUT`` (calls) and the segments, ``OUT-stem.segments.parquet`` beside it unless placed elsewhere. Both carry the same
``batchser.run_id``; ``batchser.fingerprint`` says of what they are the result. While a run lasts there is also the
folder ``OUT.work/``::

    lock                               held (flock) by the one driver that works on OUT; dies with it
    run.json                           {"run_id", "started_at", "fingerprints", "replaces"}, written before any part
    segments-FIRST-SET-RUN.parquet     the windows of some whole recordings, in manifest order
    calls-FIRST-SET-RUN.parquet        their calls rows, and in front of them ``_index`` (the recording's place in the
                                       manifest) and ``_num_windows`` (its rows in the segments part)
    .NAME.….tmp                        being written; no reader looks at it, the next run removes it

FIRST is the first recording's index, SET a hash of all their indices, RUN the beginning of the fingerprints' hash.

1. Every file is written beside its place, synced, and moved there: it is whole or absent.
2. Of a part's two files the calls come last: a calls part is the marker that its recordings are done. One that cannot
   be read, or whose segments are not as it says, counts as absent.
3. Fingerprints cover the inputs (names, roles, sizes and times of change, own columns), the model, the settings, the
   schema and the version of batchser. A work folder of others is never continued: ConfigError, or removed if fresh.
4. The commit streams the segments parts into one file in memory bounded by a row group, moves it into place, then the
   calls: that move is the commit. Then the work folder goes. An old result is replaced only there, never before.
5. After the commit, the same inputs, model, settings and schema have nothing left to do (``Finished``); the version may
   differ then, as nothing is mixed. Others are a ConfigError unless fresh.
6. A recording that two parts hold (a worker given up for dead finished after all) counts once: the part in which it is
   no fault goes before, then the first by name. One that no part holds stops the commit.

Workers write parts, one driver opens, lists and commits. These two files lie on local paths, a dataset anywhere.
"""

from batchser.sink.dataset import DatasetRun, checked_place, faults_in, is_dataset, open_dataset
from batchser.sink.files import SinkError
from batchser.sink.parts import PartSink
from batchser.sink.run import Run, open_run
from batchser.sink.target import Finished, checked_paths, inputs_fingerprint
from batchser.sink.vacuum import Vacuumed, vacuum

__all__ = [
    "DatasetRun",
    "Finished",
    "PartSink",
    "Run",
    "SinkError",
    "Vacuumed",
    "checked_paths",
    "checked_place",
    "faults_in",
    "inputs_fingerprint",
    "is_dataset",
    "open_dataset",
    "open_run",
    "vacuum",
]
