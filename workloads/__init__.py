"""Models with their data, loss, evaluation and target; one file each.

To add one: write ``workloads/x.py`` and a line here. Nothing is imported until it is used.
"""

REGISTRY = {
    "linear_regression": "workloads.linear_regression:LinearRegression",
    "cnn": "workloads.cnn:CNN",
    "lstm": "workloads.lstm:LSTM",
    "gpt": "workloads.gpt:GPT",
    "resnet": "workloads.resnet:ResNet",
    "recommender": "workloads.recommender:Recommender",
    "parameters": "workloads.parameters:Parameters",
}
