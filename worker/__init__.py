"""Workers: build the clients, hand them to the activities, poll task queues, stop politely."""
