# What is waited for comes, or the test is red: no promise is about the time that messages take between processes here.
ExUnit.start(capture_log: true, assert_receive_timeout: 5_000)
