"""The cost model against measurements that were made elsewhere: `qeil validate`."""
