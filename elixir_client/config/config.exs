# For who works in this directory; an application that depends on PyPort has its own.
import Config

# Who runs an example or a shell wants to see what it prints, not each start of a Python.
if config_env() == :dev, do: config(:logger, level: :info)
