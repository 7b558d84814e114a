"""An index over HTTP, and its web page: ``distillhash serve``.

An upload passes :mod:`~distillhash.serve.limits`, :mod:`~distillhash.serve.app` (routes), :mod:`~distillhash.serve.service` and
:mod:`~distillhash.serve.encoding`. The event loop speaks HTTP, one thread owns the index, and the model runs in processes of its own.
Requests wait in queues between them, and those that wait together are computed together.
"""
