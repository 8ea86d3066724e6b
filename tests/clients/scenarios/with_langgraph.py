"""langgraph's Postgres checkpointers over a pool."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg_pool
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row

Seen = dict[str, Any]

STEPS = 5
CONVERSATIONS = 12
# What the manual demands of a connection.
KWARGS = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}


def config(thread: int, checkpoint: str | None = None) -> Any:
    """Return what names a conversation, or one checkpoint of it."""
    place = {"thread_id": str(thread), "checkpoint_ns": ""}
    return {"configurable": place | ({"checkpoint_id": checkpoint} if checkpoint else {})}


def next_checkpoint(thread: int, step: int) -> tuple[Any, Any, Any]:
    """Return a checkpoint, its metadata and its new versions."""
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"messages": [f"{thread}-{step}"] * 3, "step": step}
    versions: dict[str, str | int | float] = {"messages": f"{step}.0", "step": f"{step}.0"}
    checkpoint["channel_versions"] = versions
    return checkpoint, {"source": "loop", "step": step}, versions


def judge(thread: int, latest: Any, listed: list[Any], first: Any) -> bool:
    """Say whether a conversation reads as it was written."""
    return (
        latest.checkpoint["channel_values"]["messages"] == [f"{thread}-{STEPS - 1}"] * 3
        and [each.metadata["step"] for each in listed] == list(reversed(range(STEPS)))
        and first.checkpoint["channel_values"]["step"] == 0
        and [write[1:] for write in latest.pending_writes] == [("answer", thread)]
    )


def out(pool: Any) -> int:
    """Return how many connections of *pool* are not at home."""
    now = pool.get_stats()
    return int(now["pool_size"] - now["pool_available"])


def pool_options(kind: str) -> dict[str, Any]:
    """Return the sizes of a pool of this kind."""
    return {"max_size": 4, "timeout": 10.0} | ({} if "Null" in kind else {"min_size": 1})


# ---- the scenarios


def checkpoints(dsn: str, kind: str) -> Seen:
    """Threads put, get and list checkpoints of their own conversations; half are deleted."""
    pool_class = getattr(psycopg_pool, kind)
    with pool_class(dsn, kwargs=KWARGS, **pool_options(kind)) as pool:
        saver = PostgresSaver(pool)
        saver.setup()
        saver.setup()

        def converse(thread: int) -> bool:
            place = config(thread)
            ids = []
            for step in range(STEPS):
                place = saver.put(place, *next_checkpoint(thread, step))
                ids.append(place["configurable"]["checkpoint_id"])
            saver.put_writes(place, [("answer", thread)], task_id="task")
            latest = saver.get_tuple(config(thread))
            listed = list(saver.list(config(thread)))
            right = judge(thread, latest, listed, saver.get_tuple(config(thread, ids[0])))
            if thread % 2:
                saver.delete_thread(str(thread))
            return right

        with ThreadPoolExecutor(CONVERSATIONS) as executor:
            right = list(executor.map(converse, range(CONVERSATIONS)))
        return {
            "right": right.count(True),
            "left": len(list(saver.list(None))),
            "connections_out": out(pool),
        }


def checkpoints_async(dsn: str, kind: str) -> Seen:
    """The same with tasks."""

    async def main() -> Seen:
        pool_class = getattr(psycopg_pool, kind)
        async with pool_class(dsn, kwargs=KWARGS, **pool_options(kind)) as pool:
            saver = AsyncPostgresSaver(pool)
            await saver.setup()
            await saver.setup()

            async def converse(thread: int) -> bool:
                place = config(thread)
                ids = []
                for step in range(STEPS):
                    place = await saver.aput(place, *next_checkpoint(thread, step))
                    ids.append(place["configurable"]["checkpoint_id"])
                await saver.aput_writes(place, [("answer", thread)], task_id="task")
                latest = await saver.aget_tuple(config(thread))
                listed = [each async for each in saver.alist(config(thread))]
                first = await saver.aget_tuple(config(thread, ids[0]))
                if thread % 2:
                    await saver.adelete_thread(str(thread))
                return judge(thread, latest, listed, first)

            right = await asyncio.gather(*[converse(each) for each in range(CONVERSATIONS)])
            return {
                "right": right.count(True),
                "left": len([each async for each in saver.alist(None)]),
                "connections_out": out(pool),
            }

    return asyncio.run(main())


def other_connections(dsn: str) -> Seen:
    """A saver is given a connection of a pool; and it looks a pool's connection in the eye."""
    with psycopg_pool.ConnectionPool(dsn, min_size=1, kwargs=KWARGS) as pool:
        with pool.connection() as conn:
            saver = PostgresSaver(conn)
            saver.setup()
            saver.put(config(1), *next_checkpoint(1, 0))
            latest = saver.get_tuple(config(1))
        return {
            "messages": latest.checkpoint["channel_values"]["messages"],
            "connections_out": out(pool),
        }
