"""Long jobs: files, pages or requests in, one line each out, in order; stopped at any time, the same call goes on."""
