//! Sockets, rings, threads: the only place that names glommio and io-uring.
