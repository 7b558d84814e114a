"""An index over HTTP, and its web page: ``distillhash serve``.

Three kinds of threads: the event loop speaks HTTP, one thread owns the index, and a thread per core (one on an accelerator) runs the
model. Requests wait in queues between them, and whatever waits together is computed together.
"""
