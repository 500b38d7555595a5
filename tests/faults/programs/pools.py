"""Processes that are forked, print, and answer through pipes of their own; and a pool of them."""

import multiprocessing

context = multiprocessing.get_context("fork")


def double(n, queue):
    print("child at work", n, flush=True)
    queue.put(2 * n)


queue = context.Queue()
children = [context.Process(target=double, args=(n, queue)) for n in range(4)]
for child in children:
    child.start()
total = sum(queue.get() for _ in children)
for child in children:
    child.join()
queue.close()
queue.join_thread()

with context.Pool(2) as pool:
    total += sum(pool.map(abs, range(-3, 4)))
pool.join()
total
