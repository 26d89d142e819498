"""The keeper: lets the library decide, carries its decisions out on disk and in the database, and wakes it in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

from mock_lts.config import Config
from mock_lts.desk import Desk
from mock_lts.faults import DriveOffline, Faults, TapeOffline
from mock_lts.library import Change, Library, Rules
from mock_lts.model import Tape, Timing
from mock_lts.store import Store
from mock_lts.vault import Vault

Clock = Callable[[], float]
"""Epoch seconds."""


class Keeper:
    """Joins the pure library with its database, its folders and the time.

    All of it runs in the event loop's thread without an await, so nobody ever sees a decision half carried out.
    """

    def __init__(self, config: Config, *, clock: Clock, faults: Faults) -> None:
        """Open the state folder and find everything as it was left.

        Raises:
            RuntimeError: Another process uses the folder.
        """
        self.clock = clock
        self.faults = faults
        config.state.mkdir(parents=True, exist_ok=True)
        self.store = Store(config.state / "mock_lts.sqlite")
        tapes = {tape.name: tape for tape in self.store.tapes()}
        for number in range(1, config.tapes + 1):
            name = f"ML{number:04}L9"
            tapes.setdefault(name, Tape(name, config.tape_bytes)).capacity_bytes = config.tape_bytes
        self.vault = Vault(config.state, tapes)
        self.desk = Desk(self.store.requests())
        self.library = Library(
            _rules(config),
            tapes.values(),
            config.drives,
            desk=self.desk,
            mishaps=faults,
            files=self.store.files(),
            now=clock(),
        )
        worm = self.store.flag("worm")
        self._worm = config.worm if worm is None else worm == "on"
        self._wake = asyncio.Event()
        faults.restore(self.store.flag("faults"), lambda saved: self.store.set_flag("faults", saved))
        self.take_offline()
        self._persist()

    def close(self) -> None:
        """Let go of the state folder."""
        self.vault.close()
        self.store.close()

    @property
    def worm(self) -> bool:
        """Nothing may be overwritten or deleted."""
        return self._worm or self.faults.worm()

    def take_offline(self) -> None:
        """Let exactly those drives and cartridges be offline of which a fault says so."""
        drives = {fault.drive for fault in self.faults.of(DriveOffline)}
        tapes = {fault.tape for fault in self.faults.of(TapeOffline)}
        for drive in list(self.library.drives):
            self.library.set_drive_offline(drive.number, offline=drive.number in drives)
        for name in self.library.tapes:
            self.library.set_tape_offline(name, offline=name in tapes)

    def set_worm(self, *, on: bool) -> None:
        """Switch write-once mode; it stays so over restarts."""
        self._worm = on
        self.store.set_flag("worm", "on" if on else "off")

    @contextmanager
    def acting(self) -> Generator[Library, None, None]:
        """The library at the present moment; what is done to it in the block is durable afterwards."""
        try:
            self.library.advance(self.clock())
            self._persist()  # a file that has just arrived is to be read now
            yield self.library
            self.library.advance(self.clock())
        finally:
            self._persist()
            self._wake.set()

    async def run(self) -> None:
        """Live through the library's own events, for ever."""
        while True:
            self._wake.clear()
            self.library.advance(self.clock())
            self._persist()
            at = self.library.next_event()
            try:
                async with asyncio.timeout(None if at is None else max(0.0, at - self.clock())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _persist(self) -> None:
        """Link, commit, unlink, in this order: a crash in between leaves a name too many and never one too few."""
        library, desk = self.library, self.desk
        moves, library.moves = library.moves, []
        for move in moves:
            if move.volume is not None and move.change is Change.TO_TAPE:
                self.vault.to_tape(move.file_id, move.volume)
            elif move.volume is not None and move.change is Change.TO_DISK:
                self.vault.to_disk(move.file_id, move.volume)
        if moves or library.changed_files or library.changed_tapes or desk.changed or desk.forgotten:
            with self.store.transaction():
                for move in moves:
                    if move.change is Change.DELETE:
                        self.store.drop_file(move.file_id)
                for file_id in library.changed_files & library.files.keys():
                    self.store.put_file(library.files[file_id])
                for name in library.changed_tapes:
                    self.store.put_tape(library.tapes[name])
                for request_id in {request_id for request_id, _ in desk.changed}:
                    self.store.put_request(desk.requests[request_id])
                self.store.put_entries(desk.changed.items())
                for request_id in desk.forgotten:
                    self.store.drop_request(request_id)
            for changed in (library.changed_files, library.changed_tapes, desk.changed, desk.forgotten):
                changed.clear()
        for move in moves:
            if move.change is Change.DELETE:
                self.vault.delete(move.file_id, move.volume)
            elif move.change is Change.OFF_DISK:
                file = library.files.get(move.file_id)
                if file is not None and not file.on_disk:
                    self.vault.off_disk(move.file_id)


def _rules(config: Config) -> Rules:
    return Rules(
        cache_bytes=config.cache_bytes,
        migrate_bytes=config.migrate_bytes,
        migrate_age_s=config.migrate_age_s,
        dwell_s=config.dwell_s,
        timing=Timing(config.time_factor),
        evict_after_s=config.evict_after_migration_s,
        evict_on_release=config.evict_on_release,
        io_error_rate=config.io_error_rate,
        never_arrive_rate=config.never_arrive_rate,
        seed=config.seed,
    )
