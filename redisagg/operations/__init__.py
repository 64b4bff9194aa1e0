"""What an aggregator can be asked to do: read state (`inspecting`) and change it (`steering`)."""
