"""Results on their way home from rented machines, verified; and to `output`, by the machine's warden."""

from __future__ import annotations

import time
from dataclasses import replace

from dtrain.cloud.meter import Meter
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.run_there import RunThere, last_whole_checkpoint
from dtrain.cloud.telling import Telling
from dtrain.errors import DtrainError, LauncherRefused, Unreachable
from dtrain.launch.ending import Ending, last_checkpoint


class Homeward:
    """Of one run."""

    def __init__(self, options: CloudOptions, meter: Meter, tell: Telling) -> None:
        self.options = options
        self.meter = meter
        self.tell = tell

    def bring(self, rented: RunThere, ending: Ending) -> Ending | None:
        """One try: the ending once all is home; None: not yet. At the limit the ending says what is missing."""
        self.tell.say("fetching", "bringing the results home")
        try:
            rented.fetch(lambda line: self.tell.say("fetching", line))
            return self._at_output(rented, ending)
        except (LauncherRefused, Unreachable) as error:
            if self.meter.is_over():
                why = f"NOT ALL IS HOME, the limit was reached: {error.message}"
                return replace(ending, reason=f"{ending.reason}; {why}")
            self.tell.say("fetching", f"trying again: {error.message}")
        return None

    def _at_output(self, rented: RunThere, ending: Ending) -> Ending:
        """The machine stays until its warden has sent everything to `output`, or says why it cannot."""
        output = self.options.output
        while output is not None and not self.meter.is_over():
            told = rented.pushed()
            if told is not None:
                problem = told["problem"]
                return replace(ending, reason=f"{ending.reason}; NOT at {output}: {problem}") if problem else ending
            self.tell.say("fetching", f"waiting until all is at {output}")
            time.sleep(self.options.poll_seconds)
        if output is None:
            return ending
        return replace(ending, reason=f"{ending.reason}; perhaps not all is at {output}: the limit was reached")

    def new_checkpoint(self, rented: RunThere) -> None:
        """A spot machine may go without a word: what it saved is worth nothing there."""
        step = last_checkpoint(self.tell.paths)
        if step is not None and step != last_whole_checkpoint(self.tell.paths):
            self.what_comes(rented)

    def what_comes(self, rented: RunThere) -> None:
        """From a machine that may go any moment."""
        try:
            rented.fetch(lambda line: self.tell.say("training", f"coming home: {line}"), "last")
        except DtrainError as error:
            self.tell.say("training", f"not home: {error.message}")
