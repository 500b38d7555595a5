ExUnit.start(capture_log: true, exclude: PyPort.Test.Features.exclude())
