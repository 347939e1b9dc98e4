"""What benchmarks share: the shapes, peers that train in turn in processes of their own, and the record of figures."""
