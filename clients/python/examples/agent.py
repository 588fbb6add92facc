"""An agent in Python: MOLTWIRE_URL, and MOLTWIRE_API_KEY of an agent whose endpoint is {"pull": {}}."""

import moltwire


def shout(task: moltwire.TaskInHand) -> object:
    if not isinstance(task.input, dict) or not task.input.get("text"):
        raise moltwire.TaskError("there is no text to shout", retryable=False)
    task.progress(0.5, "shouting")
    return {"shouted": task.input["text"].upper()}


moltwire.connect().serve(shout, capacity=4, on_problem=print)
