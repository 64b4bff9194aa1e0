-- For the expanded scripts: python -m tests.support.luacheck
std = "lua51+redis"
stds.redis = {
  read_globals = { "redis", "KEYS", "ARGV", "cmsgpack", "struct", "cjson", "bit" },
}
max_line_length = 100
